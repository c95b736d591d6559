"""Fine-tuning steps on rows laid end to end against steps on padded batches, on this machine's CPU.

    python -m gtp_benchmarks.performance.finetuning                        # half an hour on two cores
    python -m gtp_benchmarks.performance.finetuning --rows pool.jsonl    # uneven rows of one's own
    python -m gtp_benchmarks.performance.finetuning --help

A step is what `gtp_exp.training` does for one batch: collating, forward, loss, backward and AdamW's step of
LoRA's weights. Both kinds run in one process, in turn, over the same batches; figures are ratios of medians.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from transformers import TrainingArguments

from gtp_benchmarks.performance.measuring import (
    Figure,
    Timing,
    interleaved,
    machine,
    model_parser,
    quiet,
    speed_ratio,
    write_report,
)
from gtp_exp.__main__ import conf_dir
from gtp_exp.config import build
from gtp_exp.data.examples import Example, TokenizedExample
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError
from gtp_exp.model.device import Precision
from gtp_exp.model.loading import LoadedModel, Model, ModelConfig, prepare
from gtp_exp.model.packing import packing_obstacle
from gtp_exp.training.batches import Collate, TermsDataset, TrainingRows
from gtp_exp.training.config import BatchLoss
from gtp_exp.training.trainer import WeightedTrainer

BATCH = 8
BARS = {"uneven": 2.0, "like": 1.2}
JOINED = (1, 1, 1, 1, 2, 2, 4, 16)  # how many conversations of the built-in pool make one uneven row
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
KINDS = ("packed", "padded")
LOSS_BAR, GRADIENT_BAR = 1e-5, 1e-4  # in float32
# What torch's operators, by the beginnings of their names, are part of.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn", "mkldnn::"),
    "attention": ("aten::_scaled_dot_product",),
    "products and sums element by element": (
        *("aten::mul", "aten::add", "aten::sum", "aten::div", "aten::neg", "aten::pow"),
        *("aten::silu", "aten::rsqrt", "aten::mean"),
    ),
    "copies and fills": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat"),
    "loss": ("aten::_log_softmax", "aten::nll_loss", "aten::log_softmax"),
}
REST = "the rest"


class Steps:
    """Takes training steps on batches of one kind, packed or padded."""

    def __init__(self, loaded: LoadedModel, *, packed: bool) -> None:
        self._collate = Collate(loaded.tokenizer.pad_token_id, packed)
        self._autocast = loaded.dtype == torch.bfloat16
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(folder, use_cpu=True, report_to="none", disable_tqdm=True)
        self._trainer = WeightedTrainer(loaded.model, arguments)
        trained = [p for p in loaded.model.parameters() if p.requires_grad]
        # At rate 0 it costs the same and every round sees the same weights.
        self._optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
        self._trained = trained

    def __call__(self, rows: Sequence[TokenizedExample]) -> list[tuple[float, torch.Tensor]]:
        """Return the loss and the gradient of every step."""
        data = TermsDataset(TrainingRows(rows), BatchLoss.EXAMPLE_MEAN, self._collate.pad_id)
        losses_and_gradients = []
        for start in range(0, len(rows), BATCH):
            batch = self._collate([data[i] for i in range(start, min(start + BATCH, len(rows)))])
            size = batch["size"].sum()
            self._optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                loss = self._trainer.training_step(self._trainer.model, batch, size)
            self._optimizer.step()
            gradients = [p.grad.flatten() for p in self._trained if p.grad is not None]
            losses_and_gradients.append((float(loss), torch.cat(gradients)))
        return losses_and_gradients


@dataclass
class StepComparison:
    """Compares steps on packed rows with steps on padded batches, and keeps what the report will hold."""

    model: Model
    repeats: int
    clock: Callable[[], float]
    figures: list[Figure] = field(default_factory=list)
    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def compare(self, name: str, rows: Sequence[TokenizedExample], precision: Precision) -> None:
        """Time both kinds of steps over these rows, and compare their losses and gradients."""
        dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
        loaded = replace(self.model, dtype=dtype).load_trainable(0)
        _draw_second_matrix(loaded.model)
        if reason := packing_obstacle(loaded.model, rows):
            raise UserError(f"the rows of this model cannot be packed: {reason}")
        steps = {kind: Steps(loaded, packed=kind == "packed") for kind in KINDS}
        first_steps = {kind: one(rows) for kind, one in steps.items()}  # the first calls, which are not timed
        title = f"{name} rows, {precision.value}"
        with tqdm(total=2 * self.repeats, desc=title, unit="run") as bar:
            timings = interleaved(
                {kind: lambda one=one: one(rows) for kind, one in steps.items()},
                self.repeats,
                amount=len(rows),
                started=lambda kind: None,
                finished=bar.update,
                clock=self.clock,
            )
        what = f"{title}: packed / padded batches of {BATCH}"
        self.timings[title] = timings
        self.figures.append(
            speed_ratio(what, timings["packed"], timings["padded"], unit="rows/s", bar=BARS[name])
        )
        self.figures += _differences(title, first_steps["packed"], first_steps["padded"], precision)
        self.notes.append(f"{name} rows: {_about(rows)}")
        before, after = (seconds_by_part(lambda one=steps[kind]: one(rows[:BATCH])) for kind in KINDS[::-1])
        parts = [f"{part} {before[part]:.2f} and {after[part]:.2f}" for part in before]
        told = f"in all {sum(before.values()):.2f} and {sum(after.values()):.2f}"
        self.notes.append(f"{title}, seconds of one step, padded and packed: {', '.join(parts)}; {told}")


def seconds_by_part(step: Callable[[], object]) -> dict[str, float]:
    """Return where the time of a step goes by torch's profiler: seconds by `PARTS`, and the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    seconds = dict.fromkeys((*PARTS, REST), 0.0)
    for operator in profiled.key_averages():
        parts = (part for part, names in PARTS.items() if operator.key.startswith(names))
        seconds[next(parts, REST)] += operator.self_cpu_time_total / 1e6
    return seconds


def _draw_second_matrix(model: Any) -> None:
    """Draw LoRA's B at random: at zero, as training starts, the gradient of A would be zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _differences(
    title: str,
    packed: Sequence[tuple[float, torch.Tensor]],
    padded: Sequence[tuple[float, torch.Tensor]],
    precision: Precision,
) -> list[Figure]:
    """Return the largest relative difference of a step's loss and of its gradient."""
    pairs = list(zip(packed, padded, strict=True))
    loss = max(abs(a - b) / abs(b) for (a, _), (b, _) in pairs)
    gradient = max(float((a - b).norm() / b.norm()) for (_, a), (_, b) in pairs)
    exact = precision is Precision.FP32
    return [
        Figure(f"{title}: {what}", value, f"{len(pairs)} steps", bar if exact else None, at_most=True)
        for what, value, bar in (
            ("largest relative difference of a loss", loss, LOSS_BAR),
            ("largest relative difference of a gradient, l2", gradient, GRADIENT_BAR),
        )
    ]


def _about(rows: Sequence[TokenizedExample]) -> str:
    lengths = [row.n_tokens for row in rows]
    batches = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]
    padded = [len(batch) * max(batch) for batch in batches]
    return (
        f"{len(rows)} of {min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}; "
        f"batches of {BATCH} in random order compute {sum(padded) / sum(lengths):.2f} times the tokens when "
        f"padded; the largest batch holds {max(padded)} tokens padded and {max(map(sum, batches))} packed"
    )


def like_examples(n: int) -> list[Example]:
    """Return conversations of the built-in pool, of nearly the same length, in random order."""
    return _drawn("skills", [], n)


def uneven_examples(n: int, path: Path | None) -> list[Example]:
    """Return conversations of mixed length: of a file, or several of the built-in pool joined to one."""
    if path is not None:
        return _drawn("jsonl", [f"dataset.files=[{path.resolve()}]"], n)
    source, rows, joined = random.Random(0), _drawn("skills", [], 1000), []
    for i in range(n):
        parts = source.sample(rows, source.choice(JOINED))
        joined.append(Example(f"joined-{i}", tuple(m for part in parts for m in part.messages)))
    return joined


def _drawn(option: str, overrides: Sequence[str], n: int) -> list[Example]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("config", [f"dataset={option}", *overrides]).dataset)
    source: Any = build(node, "dataset")
    examples = list(source.load().examples)
    random.Random(0).shuffle(examples)
    return examples[:n]


def finetuning_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = model_parser(
        "finetuning",
        "Measures fine-tuning steps on packed rows against steps on padded batches.",
        [Precision.FP32.value, Precision.BF16.value],
    )
    parser.add_argument("--rows", type=Path, help="JSON lines with uneven rows; else built-in ones joined")
    parser.add_argument("--kinds", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--steps", type=int, default=4, help=f"batches of {BATCH} rows in a round")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: processor time, for a machine with other work; use it with --threads 1",
    )
    arguments = parser.parse_args(argv)
    if arguments.steps < 1 or arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--steps, --repeats and --threads must be at least 1")
    return arguments


def _model(option: str, cache: Path) -> Model:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        node = OmegaConf.to_container(compose("config", [f"model={option}"]).model)
    config: ModelConfig = build(node, "model")  # type: ignore[arg-type]
    return prepare(config, cache, torch.device("cpu"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons that are asked for and write the report."""
    arguments = finetuning_options(argv)
    torch.set_num_threads(arguments.threads)
    setup = machine(arguments.threads)
    try:
        model = _model(arguments.model, arguments.cache)
        bench = StepComparison(model, arguments.repeats, CLOCKS[arguments.clock])
        n = arguments.steps * BATCH
        for kind in arguments.kinds:
            # More than are needed, for rows that are too long or carry no loss are left out.
            examples = uneven_examples(2 * n, arguments.rows) if kind == "uneven" else like_examples(2 * n)
            limit = bench.model.config.max_length
            rows = tokenize(tuple(examples), bench.model.tokenizer, max_length=limit).examples[:n]
            for precision in arguments.precisions:
                bench.compare(kind, rows, Precision(precision))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    notes = [
        f"{arguments.repeats} rounds of {arguments.steps} steps; model {arguments.model}, LoRA as shipped; "
        f"{arguments.clock} time",
        *dict.fromkeys(bench.notes),
    ]
    text = write_report(
        arguments.output,
        "finetuning",
        command=" ".join(
            ["python -m gtp_benchmarks.performance.finetuning", *(sys.argv[1:] if argv is None else argv)]
        ),
        setup=setup,
        figures=bench.figures,
        notes=notes,
        repeats=bench.timings,
        details={"threads": arguments.threads},
    )
    print(text)
    return 0


if __name__ == "__main__":
    quiet()
    sys.exit(main())
