"""Memory by family of models and by how their frozen layers are stored: weights, gradients, training steps.

    python -m gtp_benchmarks.performance.model_memory
    python -m gtp_benchmarks.performance.model_memory --families llama --stored bf16 nf4 --hidden 2048

The models are random. A LoRA adapts every linear layer, and rows are of random tokens whose second half is
labelled. Every line of the table comes from a process of its own, and is written as soon as it is measured.
The process loads the model, and makes every pass twice, first with short rows. The figures are peaks above
what is held before: of torch's allocator on a GPU if there is one, otherwise of resident memory.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gtp_benchmarks.performance.long_rows import row_of
from gtp_benchmarks.performance.measuring import MMAP_FROM, forget_peak, in_words, machine, peak_above, quiet
from gtp_exp.data.examples import TokenizedExample
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.lora import ALL_LINEAR, LoRA, attach
from gtp_exp.model.loss import Reduction
from gtp_exp.model.packing import packing_obstacle
from gtp_exp.model.parameters import trainable_parameters
from gtp_exp.model.quantized import PACKAGE, Quantization, compute_dense, loading_options
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import Optimizer, TrainConfig
from gtp_exp.training.finetune import finetune
from gtp_exp.training.hooks import Hooks

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "gemma2": "Gemma2"}
STORED = ("fp32", "bf16", "nf4", "int8")  # the last two compute in bf16
HEAD = 128  # numbers of an attention head
CHECK, GRADIENTS, PLAIN = "check", "gradients", "step"
# In this order: a model that was trained with checkpointing keeps to it.
STEPS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "adamw_8bit": {"optimizer": Optimizer.ADAMW_8BIT},
    "checkpointing": {"gradient_checkpointing": True},
    "both": {"gradient_checkpointing": True, "optimizer": Optimizer.ADAMW_8BIT},
}
PASSES = (CHECK, GRADIENTS, *STEPS)

Rows = Sequence[TokenizedExample]


class _Padding:
    pad_token_id = 0


def write_model(family: str, options: argparse.Namespace, to: Path) -> None:
    """Write a random model of the family in bf16, in the form that transformers reads."""
    import transformers

    heads = options.hidden // HEAD
    config = getattr(transformers, FAMILIES[family] + "Config")(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        head_dim=HEAD,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(to)


def load(folder: Path, stored: str, rank: int, device: torch.device) -> LoadedModel:
    """Return the model with a fresh LoRA, its frozen layers as they are to be stored."""
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if stored == "fp32" else torch.bfloat16
    fewer = Quantization(stored) if stored in ("nf4", "int8") else Quantization.NONE
    bits = {} if fewer is Quantization.NONE else loading_options(fewer, dtype, device)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **bits)
    compute_dense(model)
    model = model if bits else model.to(device)
    lora = LoRA(r=rank, alpha=2 * rank, target_modules=ALL_LINEAR)
    return LoadedModel(attach(model.eval(), lora, 0, folder.name), _Padding(), 1 << 20, dtype)


def frozen_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's frozen weights and buffers, with the scales of those in fewer bits."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    found = [part for p in frozen for part in (p, *_scales(p))] + list(model.buffers())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in found}.values())


def _scales(weight: Any) -> Iterator[torch.Tensor]:
    """Yield what bitsandbytes stores beside a weight."""
    state = getattr(weight, "quant_state", None)
    while state is not None:  # the scales of four-bit weights have scales of their own
        yield from (part for part in (state.absmax, state.code, state.offset) if part is not None)
        state = state.state2
    if (scale := getattr(weight, "SCB", None)) is not None:
        yield scale


def make_pass(name: str, loaded: LoadedModel, folder: Path) -> Callable[[Rows], object]:
    """Return what passes rows through the model: to see that they may be packed, as is done once before
    training; for gradients by the packed engine; or for two steps of training, of which the second one's peak
    counts, with the optimizer's state beside it. folder: for the training curve."""
    if name == CHECK:
        return lambda rows: packing_obstacle(loaded.model, rows)
    if name == GRADIENTS:
        parameters = trainable_parameters(loaded.model)
        engine = make_engine(
            Engine.PACKED, loaded.model, parameters, reduction=Reduction.MEAN, kernel=LinearKernel.DEFAULT
        )
        return lambda rows: engine.run(rows, lambda name, gradients: None)

    def first_step_is_over(model: Any, optimizer: Any, step: int, rate: float) -> None:
        if step == 1:
            forget_peak(next(model.parameters()).device)

    def train(rows: Rows) -> None:
        config = TrainConfig(epochs=2, batch_size=len(rows), micro_batch_size=len(rows))
        hooks = Hooks(on_epoch_end=first_step_is_over)  # with a hook no checkpoint is written
        finetune(
            loaded,
            TrainingRows(rows),
            replace(config, **STEPS[name]),
            folder,
            seed=0,
            label=name,
            hooks=hooks,
        )

    return train


def measure(options: argparse.Namespace) -> dict[str, int]:
    """Return the bytes of the frozen weights, and those of every pass above all that is held before it."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(options.folder, options.stored[0], options.rank, device)
        rows, sizes = [row_of(options.tokens)] * options.rows, {"weights": frozen_bytes(loaded.model)}
        for name in options.passes:
            one = make_pass(name, loaded, Path(folder))
            one([row_of(16)] * 2)  # brings in what is made once: libraries, kernels
            sizes[name] = peak_above(functools.partial(one, rows), device)
        return sizes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every pass of every model, and print the table and write it, line by line."""
    options = _parser().parse_args(argv)
    if options.folder:
        quiet()
        print(json.dumps(measure(options)))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "model_memory.md").open("w") as file:

        def tell(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        _table(options, tell)
        tell("")
        tell(f"- {in_words(machine(options.threads))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--stored", nargs="+", choices=STORED, default=list(STORED))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--hidden", type=int, default=1024, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of a row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"), help="folder")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def _table(options: argparse.Namespace, tell: Callable[[str], None]) -> None:
    """Tell the table's lines: one for each family and each way to store its weights."""
    lacking = importlib.util.find_spec(PACKAGE) is None
    if lacking:
        tell(f"{PACKAGE} is not installed: nf4, int8 and adamw_8bit are left out\n")
    passes = [
        name for name in PASSES if name in options.passes and not (lacking and name in ("adamw_8bit", "both"))
    ]
    stored = [kind for kind in options.stored if not (lacking and kind in ("nf4", "int8"))]
    tell(
        "| family | stored | weights, MiB |" + "".join(f" {name} |" for name in passes) + " weights + step |"
    )
    tell("|---|---|" + "---|" * (len(passes) + 2))
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            write_model(family, options, Path(folder))
            first: dict[str, int] = {}
            for kind in stored:
                sizes = _in_a_process(options, Path(folder), kind, passes)
                if isinstance(sizes, str):
                    tell(f"| {family} | {kind} | failed: {sizes} |")
                    continue
                if PLAIN in sizes:
                    sizes["all"] = sizes["weights"] + sizes[PLAIN]
                first = first or sizes
                tell(line_of(family, kind, passes, sizes, first))


def line_of(
    family: str, kind: str, passes: Sequence[str], sizes: Mapping[str, int], first: Mapping[str, int]
) -> str:
    """Return a line of the table: MiB, and in brackets the share of the training step's, or, of weights and
    of all together, of what the family's first line has. sizes: bytes."""

    def cell(name: str, whole: int | None) -> str:
        if name not in sizes:
            return "-"
        share = f" ({sizes[name] / whole:.2f})" if whole else ""
        return f"{sizes[name] / 2**20:.0f}{share}"

    step = sizes.get(PLAIN)
    middle = [cell(name, None if name == PLAIN else step) for name in passes]
    ends = [cell(name, first.get(name)) for name in ("weights", "all")]
    return "| " + " | ".join([family, kind, ends[0], *middle, ends[1]]) + " |"


def _in_a_process(
    options: argparse.Namespace, folder: Path, kind: str, passes: Sequence[str]
) -> dict[str, int] | str:
    """Return what `measure` finds in a fresh process, or why it found nothing."""
    line = [sys.executable, __file__, "--folder", str(folder), "--stored", kind, "--passes", *passes]
    for option in ("rank", "rows", "tokens", "threads"):
        line += [f"--{option}", str(getattr(options, option))]
    settings = {"PYTHONPATH": os.pathsep.join(sys.path), **MMAP_FROM}
    done = subprocess.run(line, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
