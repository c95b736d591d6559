"""Peak memory against the length of a row: the gradient engine, a training step and the held-out loss.

    python -m gtp_benchmarks.performance.long_rows --lengths 1024 4096
    python -m gtp_benchmarks.performance.long_rows --model tiny --lengths 1024 8192 32768
    python -m gtp_benchmarks.performance.long_rows --speed             # rows of 50 to 500 tokens instead

Every figure comes from a process of its own, which loads the model, passes a short row, and then passes one
row of random tokens whose second half is labelled. To compare two commits, run the script with the package
of each in PYTHONPATH (`--code FOLDER` puts another checkout's first).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments

from gtp_benchmarks.performance.gradient_methods import Weights
from gtp_benchmarks.performance.measuring import MMAP_FROM, peak_above, quiet
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.evaluation.held_out import held_out_loss
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.model.device import Precision
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import Reduction
from gtp_exp.model.parameters import trainable_parameters
from gtp_exp.training.batches import Collate, TermsDataset, TrainingRows
from gtp_exp.training.config import BatchLoss
from gtp_exp.training.trainer import WeightedTrainer

Pass = Callable[[Sequence[TokenizedExample]], object]
PASSES = ("packed", "hooks", "autograd", "training", "held-out")


class _Padding:
    pad_token_id = 0


def row_of(n: int) -> TokenizedExample:
    """Return a row of n random tokens; the second half is its answer."""
    source = random.Random(n)
    ids = tuple(source.randrange(16, 250) for _ in range(n))
    labels = (IGNORE,) * (n // 2) + ids[n // 2 :]
    return TokenizedExample(f"row-{n}", ids, labels, ((n // 2, n - 1),))


def make_pass(name: str, model: torch.nn.Module) -> Pass:
    """Return what runs some rows through the model in one of the PASSES."""
    if name == "held-out":
        loaded = LoadedModel(model, _Padding(), 1 << 20, torch.float32)
        return lambda rows: held_out_loss(rows, loaded, batch_size=16, label="held-out")
    if name == "training":
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(folder, use_cpu=True, report_to="none", disable_tqdm=True)
        trainer = WeightedTrainer(model, arguments)

        def step(rows: Sequence[TokenizedExample]) -> None:
            data = TermsDataset(TrainingRows(rows), BatchLoss.EXAMPLE_MEAN, 0)
            batch = Collate(0, packed=True)([data[i] for i in range(len(rows))])
            trainer.training_step(model, batch, torch.tensor(float(len(rows))))

        return step
    kind, kernel = Engine(name), LinearKernel.DEFAULT
    parameters = trainable_parameters(model)
    engine = make_engine(kind, model, parameters, reduction=Reduction.MEAN, kernel=kernel)
    return lambda rows: engine.run(rows, lambda name, gradients: None)


def measure(arguments: argparse.Namespace) -> list[float]:
    """Return the bytes above what is held after a short row, and the processor's seconds, of one pass; or the
    median seconds of a pass over rows of 50 to 500 tokens."""
    torch.set_num_threads(1)
    model = Weights(arguments.model, None, arguments.cache).load(Precision.FP32, r=8)
    one = make_pass(arguments.one, model)
    one([row_of(64)])
    rows = [row_of(n) for n in ((50, 100, 200, 500) if arguments.speed else arguments.lengths[:1])]
    seconds = []

    def timed() -> None:
        for _ in range(arguments.repeats if arguments.speed else 1):
            start = time.process_time()
            one(rows)
            seconds.append(time.process_time() - start)

    peak = peak_above(timed, torch.device("cpu"))
    return [peak, sorted(seconds)[len(seconds) // 2]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every pass at every length, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=["smollm2_135m", "tiny"], default="smollm2_135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--speed", action="store_true", help="time rows of 50 to 500 tokens instead")
    parser.add_argument("--repeats", type=int, default=3, help="of a timed pass")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="for converted models")
    parser.add_argument("--code", type=Path, nargs="+", help="checkouts to compare, in turn; else this one")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(given)
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return 0
    checkouts = [str(path.resolve()) for path in arguments.code or []] or [""]
    print("| pass | tokens |" + "".join(f" {Path(c).name or 'MiB, s'} |" for c in checkouts))
    print("|---|---|" + "---|" * len(checkouts))
    for name in arguments.passes:
        for n in [0] if arguments.speed else arguments.lengths:
            found = [_in_a_process(arguments, checkout, name, n) for checkout in checkouts]
            print(f"| {name} | {n or '50 to 500'} |" + "".join(f" {one} |" for one in found), flush=True)
    return 0


def _in_a_process(arguments: argparse.Namespace, checkout: str, name: str, n: int) -> str:
    """Return one cell of the table: MiB and processor seconds."""
    line = [sys.executable, __file__, "--one", name, "--model", arguments.model, "--lengths", str(n)]
    line += ["--cache", str(arguments.cache), "--repeats", str(arguments.repeats)]
    paths = ([checkout] if checkout else []) + sys.path
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **MMAP_FROM}
    environment = {**os.environ, **settings}
    line += ["--speed"] if arguments.speed else []
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return f"{peak / 2**20:.0f} MiB, {seconds:.2f} s"


if __name__ == "__main__":
    quiet()
    sys.exit(main())
