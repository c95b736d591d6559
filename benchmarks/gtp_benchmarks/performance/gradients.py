"""Per-example gradients against a plain training step, LESS's procedure and bergson, on this machine's CPU.

    python -m gtp_benchmarks.performance.gradients           # about twelve minutes on two cores
    python -m gtp_benchmarks.performance.gradients --help

Where the processor has no fast bf16 the parts in bf16 would take hours, and are left out. Every part says how
long it will take, and stands in the report as soon as it is done, so that what is stopped keeps what it has.

Methods that are compared run in one process, in turn; the figures are ratios of medians. Ours is what
`gtp_exp.gradients.collect` runs for every shard, without the writing to disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from tqdm import tqdm

from gtp_benchmarks.performance.gradient_methods import (
    PLAIN_BATCH,
    SKETCH,
    Method,
    Ours,
    PlainStep,
    Weights,
    half_of,
    random_moments,
    zipf_examples,
)
from gtp_benchmarks.performance.gradient_peers import BergsonCollector, LessProcedure, missing
from gtp_benchmarks.performance.measuring import (
    Figure,
    Timing,
    interleaved,
    machine,
    model_parser,
    peak_memory,
    quiet,
    speed_ratio,
    three_digits,
    write_report,
)
from gtp_exp.data.batching import length_sorted_batches
from gtp_exp.data.examples import TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.gradients.sketch import make_projection
from gtp_exp.model.device import Precision, choose_dtype
from gtp_exp.model.loss import Reduction, reference_gradients

PLAIN_BARS = {Precision.FP32: 1.15, Precision.BF16: 1.5}  # speed, ours / plain step
SKETCH_BARS = {8: 0.97, 64: 0.95}  # by rank: speed with direction and sketch / without
BERGSON_BAR = 1.0
MEMORY_BAR = 1.5  # peak, ours / plain step
BERGSON_TOKENS = 1024  # padded tokens a batch: bergson's best on the CPUs that were tried
LESS_SAMPLE = 64  # one in so many columns of the projection tells how long it will take
LESS_SHARE = {8: 1, 64: 16}  # by rank: one in so many blocks of the projection is measured


class Part(Enum):
    """Names the parts of the comparison."""

    EXACT = "exact"  # error against batch-size-1 autograd
    FP32 = "fp32"  # ours / plain step
    BF16 = "bf16"
    SKETCH = "sketch"  # with direction and sketch / without, bf16
    SKETCH_FP32 = "sketch_fp32"  # only when asked for
    LESS = "less"  # needs traker
    BERGSON = "bergson"  # needs bergson
    MEMORY = "memory"


@dataclass(frozen=True)
class Section:
    """Holds what one part adds to the report."""

    figures: Sequence[Figure] = ()
    timings: Mapping[str, Timing] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


class GradientBench:
    """Holds what the sections share: the model, the data, the number of repeats, and the progress bar."""

    def __init__(
        self,
        weights: Weights,
        examples: Sequence[TokenizedExample],
        repeats: int,
        progress: tqdm,
        precisions: Sequence[Precision] = (Precision.FP32, Precision.BF16),
    ) -> None:
        self.weights, self.examples, self.repeats, self.progress = weights, examples, repeats, progress
        self.precisions = tuple(precisions)  # those that are measured
        self.half = half_of(examples)
        self.fallbacks: list[str] = []

    def ours(self, model: Any, examples: Sequence[TokenizedExample]) -> Ours:
        """Return this project's method for the model, and note where it fell back to a slower engine."""
        ours = Ours.choose(model, examples)
        if ours.choice.engine is not Engine.PACKED:
            n = sum(p.numel() for p in ours.parameters.values())
            dtype = str(model.dtype).removeprefix("torch.")
            self.fallbacks.append(
                f"**engine {ours.choice.engine.value} was measured, not packed, which failed its check**: "
                f"{dtype}, {n} trainable values"
            )
        return ours

    def measure(
        self,
        section: str,
        methods: Mapping[str, Method],
        examples: Sequence[TokenizedExample],
        *,
        repeats: int | None = None,
        expected: float | None = None,
    ) -> dict[str, Timing]:
        """Measure rounds of all methods on the examples, after an untimed run of each on the first few.

        expected: seconds of one round, where that is known; the first few are then left out.
        """
        n = repeats or self.repeats
        if expected is None:
            expected = 0.0
            for name, method in methods.items():
                self.say(f"{section}: warming up {name}")
                start = time.perf_counter()
                method(examples[:PLAIN_BATCH])
                expected += (time.perf_counter() - start) * len(examples) / PLAIN_BATCH
        line = f"{section}: {n} x {len(methods)} runs, about {_spoken(n * expected)}"
        self.progress.write(line, file=sys.stderr)
        return interleaved(
            {name: lambda method=method: method(examples) for name, method in methods.items()},
            repeats or self.repeats,
            amount=len(examples),
            started=lambda name: self.say(f"{section}: {name}"),
            finished=lambda: self.progress.update(),
        )

    def say(self, what: str) -> None:
        """Show in the progress bar what runs now."""
        self.progress.set_postfix_str(what)


def exactness(bench: GradientBench) -> Section:
    """Report relative errors of four examples.

    float32 is compared in the largest value; bf16 in the l2 norm, against the float32 gradient, beside
    batch-size-1 autograd in bf16.
    """
    bench.say("exact")
    exact = bench.weights.load(Precision.FP32, r=8)
    ours = bench.ours(exact, bench.half)
    by_length = sorted(bench.half, key=lambda e: e.n_tokens)
    four = [by_length[round(k * (len(by_length) - 1) / 3)] for k in range(4)]
    gradients = ours.by_name(bench.half)
    sketched = sketch_errors(list(gradients.values()))
    truths = {e.id: reference_gradients(exact, ours.parameters, e, Reduction.MEAN) for e in four}
    errors = {
        "fp32": [relative_error(gradients[i], truth, order=float("inf")) for i, truth in truths.items()]
    }
    note = (
        "exactness, the worst of four examples against batch-size-1 autograd in fp32: fp32 "
        f"{max(errors['fp32']):.1e} of the largest value"
    )
    if Precision.BF16 in bench.precisions:
        rounded = bench.weights.load(Precision.BF16, r=8)
        ours = bench.ours(rounded, bench.half)
        gradients = ours.by_name(bench.half)
        ones = {e.id: reference_gradients(rounded, ours.parameters, e, Reduction.MEAN) for e in four}
        for name, values in (("bf16", gradients), ("bf16, batch size 1", ones)):
            errors[name] = [relative_error(values[i], truth, order=2) for i, truth in truths.items()]
        note += (
            f"; bf16 {max(errors['bf16']):.1e} in the l2 norm, where batch-size-1 autograd in bf16 has "
            f"{max(errors['bf16, batch size 1']):.1e}"
        )
    middle = (sum(e * e for e in sketched) / len(sketched)) ** 0.5
    kept = (
        f"a CountSketch to {SKETCH.dim} moves the cosine of two examples' gradients by {middle:.4f} (root "
        f"mean square over all pairs and {len(sketched)} seeds; 1 / sqrt(dim) is {SKETCH.dim**-0.5:.4f})"
    )
    bench.progress.update()
    return Section(details={"relative_error": errors, "cosine_error": sketched}, notes=[note, kept])


def sketch_errors(gradients: Sequence[Mapping[str, torch.Tensor]], seeds: int = 5) -> list[float]:
    """Return by seed the root mean square of what a sketch changes in the cosines of all pairs."""
    sizes = {name: values.numel() for name, values in gradients[0].items()}
    parts = {name: torch.stack([one[name].flatten().float() for one in gradients]) for name in sizes}
    pairs = torch.triu_indices(len(gradients), len(gradients), 1)

    def cosines(rows: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize(rows, dim=1)
        return (unit @ unit.T)[pairs[0], pairs[1]]

    exact, errors = cosines(torch.cat(list(parts.values()), dim=1)), []
    for seed in range(seeds):
        projection = make_projection(SKETCH, sizes, seed=seed, checkpoint=0, device="cpu")
        sums = projection.empty(len(gradients))
        for name, values in parts.items():
            projection.add(name, values, sums)
        errors.append(float((cosines(projection.finish(sums)) - exact).square().mean().sqrt()))
    return errors


def against_plain_fp32(bench: GradientBench) -> Section:
    """Compare our rate with that of a plain training step in float32."""
    model = bench.weights.load(Precision.FP32, r=8)
    ours = bench.ours(model, bench.half)
    methods: dict[str, Method] = {"plain": PlainStep(model, autocast=False), "ours": ours.whole()}
    if ours.choice.kernel is not LinearKernel.DEFAULT:
        methods["ours, default kernel"] = ours.with_kernel(LinearKernel.DEFAULT).whole()
    timings = bench.measure("fp32", methods, bench.half)
    figures = [
        _speed(timings, name, "plain", f"ours, {kernel} linear layers / plain step, fp32", bar)
        for name, kernel, bar in (
            ("ours", ours.choice.kernel.value, PLAIN_BARS[Precision.FP32]),
            ("ours, default kernel", "torch's default", PLAIN_BARS[Precision.FP32]),
        )
        if name in methods
    ]
    return Section(figures, timings, {"choice": _choice(ours), "data": _about(bench.half)})


def against_plain_bf16(bench: GradientBench) -> Section:
    """Compare our rate with that of a plain training step in bf16."""
    ours = bench.ours(bench.weights.load(Precision.BF16, r=8), bench.examples)
    methods: dict[str, Method] = {
        "plain, autocast": PlainStep(bench.weights.load(Precision.FP32, r=8), autocast=True),
        # Adapters too: PEFT keeps them in float32, which would cost the plain step more.
        "plain, all bf16": PlainStep(bench.weights.load(Precision.BF16, r=8).bfloat16(), autocast=False),
        "ours": ours.whole(),
    }
    timings = bench.measure("bf16", methods, bench.examples)
    bar = PLAIN_BARS[Precision.BF16]
    figures = [
        _speed(timings, "ours", "plain, autocast", "ours / plain step under autocast, bf16", bar),
        _speed(timings, "ours", "plain, all bf16", "ours / plain step with all weights in bf16"),
    ]
    return Section(figures, timings, {"choice": _choice(ours), "data": _about(bench.examples)})


def sketching(bench: GradientBench, precision: Precision) -> Section:
    """Compare our rate with direction and sketch with that without."""
    figures, timings, choices = [], {}, {}
    for r, bar in SKETCH_BARS.items():
        ours = bench.ours(bench.weights.load(precision, r), bench.half)
        methods: dict[str, Method] = {
            "without": ours.dropped,  # computed, and not even copied
            "with": ours.directions(random_moments(ours.parameters)),
        }
        measured = bench.measure(f"sketch, {precision.value}, r = {r}", methods, bench.half)
        what = f"ours with `less` direction and CountSketch to {SKETCH.dim} / without"
        figures.append(_speed(measured, "with", "without", f"{what}, {precision.value}, r = {r}", bar))
        timings |= {f"{name}, r = {r}": timing for name, timing in measured.items()}
        choices[f"r = {r}"] = _choice(ours)
    return Section(figures, timings, {"choice": choices, "data": _about(bench.half)})


def against_less(bench: GradientBench) -> Section:
    """Compare with one call of LESS's projector, in bf16 as LESS runs; each method once, for it takes
    minutes."""
    if reason := missing("trak"):
        bench.progress.update(3 * len(LESS_SHARE))
        return Section(notes=[f"LESS's procedure was not measured: {reason}"])
    examples = bench.half[: LessProcedure.per_call]
    figures, timings = [], {}
    for r, share in LESS_SHARE.items():
        ours = bench.ours(bench.weights.load(Precision.BF16, r), examples)
        moments = random_moments(ours.parameters)
        less = LessProcedure(bench.weights.load(Precision.BF16, r), moments)
        start = time.perf_counter()
        gradients = less.gradients(examples)
        middle = time.perf_counter()
        less.project(gradients, less.projector(SKETCH.dim // share // LESS_SAMPLE))
        # Ours is not slower than LESS's gradients, and a projection's time grows with its dimension.
        expected = 2 * (middle - start) + LESS_SAMPLE * (time.perf_counter() - middle)
        projector = less.projector(SKETCH.dim // share)
        methods: dict[str, Method] = {
            "ours": ours.directions(moments),
            "LESS, gradients": less.gradients,
            "LESS, projection": lambda _, less=less, g=gradients, p=projector: less.project(g, p),
        }
        measured = bench.measure(f"LESS, r = {r}", methods, examples, repeats=1, expected=expected)
        projection = share * measured["LESS, projection"].median
        total = Timing((measured["LESS, gradients"].median + projection,), len(examples))
        what = (
            f"ours with sketch / LESS's procedure (batch size 1, TRAK's BasicProjector to {SKETCH.dim}), "
            f"bf16, r = {r}; once, {len(examples)} examples"
        )
        if share > 1:
            what += f", 1/{share} of the projection"
        absolute = (
            f"{three_digits(measured['ours'].rate)} : {three_digits(total.rate)} examples/s; "
            f"{projection / total.median:.0%} of LESS's time is the projection"
        )
        figures.append(Figure(what, measured["ours"].rate / total.rate, absolute))
        timings |= {f"{name}, r = {r}": timing for name, timing in measured.items()}
    return Section(figures, timings, {"projection_share": LESS_SHARE, "data": _about(examples)})


def against_bergson(bench: GradientBench) -> Section:
    """Compare our rate with that of bergson's collector."""
    if reason := missing("bergson"):
        bench.progress.update(2 * len(bench.precisions) * bench.repeats)
        return Section(notes=[f"bergson was not measured: {reason}"])
    figures, timings = [], {}
    for precision in bench.precisions:
        ours = bench.ours(bench.weights.load(precision, r=8), bench.half)
        model = bench.weights.load(precision, r=8)
        if precision is Precision.BF16:
            model = model.bfloat16()  # bergson keeps the adapters in the model's precision
        methods: dict[str, Method] = {
            "ours": ours.whole(),
            "bergson": BergsonCollector(model, BERGSON_TOKENS),
        }
        measured = bench.measure(f"bergson, {precision.value}", methods, bench.half)
        what = f"ours / bergson's collector without projection, {precision.value}"
        figures.append(_speed(measured, "ours", "bergson", what, BERGSON_BAR))
        timings |= {f"{name}, {precision.value}": timing for name, timing in measured.items()}
    return Section(figures, timings, {"data": _about(bench.half)})


def memory(bench: GradientBench, precisions: Sequence[Precision] | None = None) -> Section:
    """Compare our peak memory with that of a plain training step."""
    figures, peaks = [], {}
    for precision in bench.precisions if precisions is None else precisions:
        for method in ("ours", "plain"):
            bench.say(f"memory, {precision.value}: {method}")
            arguments = (bench.weights, method, precision, len(bench.examples), torch.get_num_threads())
            # spawn: a forked process would begin with this one's memory
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                peaks[f"{method}, {precision.value}"] = fresh.submit(peak_of, *arguments).result()
            bench.progress.update()
        ours, plain = peaks[f"ours, {precision.value}"], peaks[f"plain, {precision.value}"]
        under = " under autocast" if precision is Precision.BF16 else ""
        figures.append(
            Figure(
                what=f"peak memory, ours with sketch / plain step{under}, {precision.value}",
                value=ours / plain,
                absolute=f"{three_digits(ours / 2**20)} : {three_digits(plain / 2**20)} MiB",
                bar=MEMORY_BAR,
                at_most=True,
            )
        )
    note = (
        "peak memory: the largest resident size of a process of its own that loads the model and runs one "
        "method over the examples, libraries and weights included"
    )
    return Section(figures, {}, {"peak_bytes": peaks, "data": _about(bench.half)}, [note])


def peak_of(weights: Weights, method: str, precision: Precision, n_examples: int, threads: int) -> int:
    """Return the peak memory of one method in bytes; to be run in a fresh process.

    Autocast has float32 weights under it, ours are in bf16.
    """
    quiet()
    torch.set_num_threads(threads)
    plain = method == "plain"
    model = weights.load(Precision.FP32 if plain else precision, r=8)
    examples = half_of(zipf_examples(n_examples, model.config.vocab_size))
    if plain:
        PlainStep(model, autocast=precision is Precision.BF16)(examples)
    else:
        ours = Ours.choose(model, examples)
        ours.directions(random_moments(ours.parameters))(examples)
    return peak_memory()


# Each with its number of steps on the progress bar, by the number of repeats.
SECTIONS: dict[Part, tuple[Callable[[GradientBench], Section], Callable[[int], int]]] = {
    Part.EXACT: (exactness, lambda repeats: 1),
    Part.FP32: (against_plain_fp32, lambda repeats: 3 * repeats),
    Part.BF16: (against_plain_bf16, lambda repeats: 3 * repeats),
    Part.SKETCH: (lambda bench: sketching(bench, Precision.BF16), lambda repeats: 4 * repeats),
    Part.SKETCH_FP32: (lambda bench: sketching(bench, Precision.FP32), lambda repeats: 4 * repeats),
    Part.LESS: (against_less, lambda repeats: 3 * len(LESS_SHARE)),
    Part.BERGSON: (against_bergson, lambda repeats: 4 * repeats),
    Part.MEMORY: (memory, lambda repeats: 4),
}


ONLY_BF16 = (Part.BF16, Part.SKETCH, Part.LESS)
NO_FAST_BF16 = "this processor has no fast bf16; --precisions fp32 bf16 measures it all the same, for hours"


def _speed(
    timings: Mapping[str, Timing], ours: str, theirs: str, what: str, bar: float | None = None
) -> Figure:
    return speed_ratio(what, timings[ours], timings[theirs], unit="examples/s", bar=bar)


def _spoken(seconds: float) -> str:
    """Return a time as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _choice(ours: Ours) -> dict[str, Any]:
    return {
        "engine": ours.choice.engine.value,
        "kernel": ours.choice.kernel.value,
        "token_budget": ours.choice.token_budget,
        "trainable_values": sum(p.numel() for p in ours.parameters.values()),
    }


def _about(examples: Sequence[TokenizedExample]) -> dict[str, Any]:
    lengths = [e.n_tokens for e in examples]
    batches = [[lengths[i] for i in index] for index in length_sorted_batches(lengths, PLAIN_BATCH)]
    return {
        "examples": len(lengths),
        "shortest": min(lengths),
        "mean": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "completion_tokens": sum(e.n_completion_tokens for e in examples),
        "padding_of_plain_batches": 1 - sum(lengths) / sum(len(b) * max(b) for b in batches),
    }


def _data_note(name: str, examples: Sequence[TokenizedExample]) -> str:
    about = _about(examples)
    return (
        f"{name}: {about['examples']} chats of {about['shortest']} to {about['longest']} random tokens, mean "
        f"{about['mean']:.0f}, loss on the second half; length-sorted batches of {PLAIN_BATCH} for the plain "
        f"step, {about['padding_of_plain_batches']:.1%} of them padding"
    )


def gradient_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options of the command line."""
    fast = choose_dtype(Precision.AUTO, torch.device("cpu")) is torch.bfloat16
    parser = model_parser(
        "gradients",
        "Measures per-example gradients against a plain LoRA training step and other ways, "
        "by default in the precisions that the processor is fast in.",
        ["fp32", "bf16"] if fast else ["fp32"],
    )
    parser.add_argument("--model-path", help="local folder to load the model from")
    parser.add_argument("--examples", type=int, default=64, help="all but the bf16 part use half of them")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[part.value for part in Part],
        default=[part.value for part in Part if part is not Part.SKETCH_FP32],
        metavar="PART",
        help="any of %(choices)s",
    )
    arguments = parser.parse_args(argv)
    if arguments.examples < 4 or arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--examples must be at least 4, --repeats and --threads at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for and write the report."""
    arguments = gradient_options(argv)
    torch.set_num_threads(arguments.threads)
    setup = machine(arguments.threads)
    weights = Weights(arguments.model, arguments.model_path, arguments.cache)
    precisions = [p for p in (Precision.FP32, Precision.BF16) if p.value in arguments.precisions]
    chosen = [part for part in Part if part.value in arguments.parts]
    sections: dict[str, Section] = {}
    text = ""
    try:
        vocabulary = weights.load(Precision.BF16, r=8).config.vocab_size
        steps = sum(SECTIONS[part][1](arguments.repeats) for part in chosen)
        with tqdm(total=steps, unit="run", desc="gradients") as progress:
            examples = zipf_examples(arguments.examples, vocabulary)
            bench = GradientBench(weights, examples, arguments.repeats, progress, precisions)
            for part in chosen:
                needs = Precision.BF16 if part in ONLY_BF16 else Precision.FP32
                if needs in precisions or part in (Part.MEMORY, Part.BERGSON):
                    section = SECTIONS[part][0](bench)
                else:
                    section = Section(notes=[f"{part.value} was not measured: {_why_not(needs)}"])
                    progress.write(section.notes[0], file=sys.stderr)
                sections[part.value] = section
                text = _write(arguments, argv, setup, bench, sections)
                progress.write(f"{part.value}: written to {arguments.output}", file=sys.stderr)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {len(sections)} of {len(chosen)} parts are written", file=sys.stderr)
        return 130
    print(text)
    return 0


def _why_not(precision: Precision) -> str:
    """Return why nothing is measured in a precision that was not asked for."""
    return NO_FAST_BF16 if precision is Precision.BF16 else "--precisions leaves out fp32"


def _write(
    arguments: argparse.Namespace,
    argv: Sequence[str] | None,
    setup: Mapping[str, Any],
    bench: GradientBench,
    sections: Mapping[str, Section],
) -> str:
    """Write the report of the parts that are done, and return its text."""
    notes = [
        f"{arguments.repeats} rounds; model {arguments.model}, LoRA on q, k, v, o, r = 8 unless said; the "
        "plain step is forward, loss and backward, without the optimizer",
        _data_note("bf16", bench.examples),
        _data_note("the rest", bench.half),
        *dict.fromkeys(bench.fallbacks),
        *(note for section in sections.values() for note in section.notes),
    ]
    return write_report(
        arguments.output,
        "gradients",
        command=" ".join(
            ["python -m gtp_benchmarks.performance.gradients", *(sys.argv[1:] if argv is None else argv)]
        ),
        setup=setup,
        figures=[figure for section in sections.values() for figure in section.figures],
        notes=notes,
        repeats={name: section.timings for name, section in sections.items()},
        details={"sections": {name: section.details for name, section in sections.items()}},
    )


if __name__ == "__main__":
    quiet()
    sys.exit(main())
