"""Interleaved repeats, their medians, and the report: what the performance scripts share.

Machines change speed while they are measured. So methods that are compared run in turn, round after round,
and what is reported is the ratio of their medians; absolute numbers are only for scale.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy")
# For the environment of a process whose memory is measured: glibc then gives blocks from 128 KiB on back as
# soon as they are freed. By itself it keeps ever larger ones, which hides what is allocated next.
MMAP_FROM = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
READ = 1 << 22  # bytes of a file that a plain read asks for at a time


@dataclass(frozen=True)
class Timing:
    """Holds the times of one method."""

    seconds: tuple[float, ...]  # of every repeat, in order of the rounds
    amount: float  # what one repeat gets through: examples, rows, or 1 for a whole

    @property
    def median(self) -> float:
        """Return the median time of a repeat in seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Return the amount per second."""
        return self.amount / self.median


@dataclass(frozen=True)
class Figure:
    """Holds one line of the table: a ratio, and the bar it has to pass if there is one."""

    what: str
    value: float
    absolute: str  # the numbers behind the ratio, with their unit
    bar: float | None = None
    at_most: bool = False  # the bar is an upper limit

    @property
    def met(self) -> bool | None:
        """Return whether the bar is passed; None without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def interleaved(
    methods: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    amount: float,
    started: Callable[[str], object],
    finished: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Runs every method once a round, each round beginning with another one.

    Nothing is warmed up here: what a first call costs, the caller must have paid. amount: what each of the
    methods gets through in one run. `started` and `finished` are called around every run, outside the time
    taken, for a progress bar. clock: of wall time, or of the processor's.
    """
    names = list(methods)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(repeats):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            started(name)
            gc.collect()  # what one method leaves behind is not charged to the next
            start = clock()
            methods[name]()
            seconds[name].append(clock() - start)
            finished()
    return {name: Timing(tuple(s), amount) for name, s in seconds.items()}


def read_files(folder: Path, *, from_disk: bool) -> float:
    """Return the seconds of one plain read of all files under a folder, one after the other.

    from_disk: first have the system forget what it holds of them in memory, where it can be asked to.
    """
    if from_disk:
        forget_files(folder)
    buffer = bytearray(READ)
    began = time.perf_counter()
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def forget_files(folder: Path) -> bool:
    """Have the system forget what it holds of a folder's files in memory, so that they are read from disk
    again; return whether it can be asked to (Linux can).
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not yet written cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


@contextlib.contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Make a folder for stores on disk inside another, which may not be there yet, or where the system keeps
    such folders; remove it at the end.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gtp-exp-", dir=parent) as folder:
        yield Path(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def speed_ratio(what: str, ours: Timing, theirs: Timing, *, unit: str, bar: float | None = None) -> Figure:
    """Return how many times as fast ours is, with the range over the rounds beside the two rates."""
    rounds = [
        (ours.amount / a) / (theirs.amount / b) for a, b in zip(ours.seconds, theirs.seconds, strict=True)
    ]
    return Figure(
        what=what,
        value=ours.rate / theirs.rate,
        absolute=f"{three_digits(ours.rate)} : {three_digits(theirs.rate)} {unit}; "
        f"rounds {three_digits(min(rounds))} to {three_digits(max(rounds))}",
        bar=bar,
    )


def machine(threads: int) -> dict[str, Any]:
    """Return what the numbers depend on and the command line does not say."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(
            os.getloadavg()[0], 2
        ),  # of the minute before: others at work spoil the numbers
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def model_parser(module: str, description: str, precisions: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that all scripts have that run a model in turn by several methods.

    module: the script's name in this package. precisions: those that are measured by default.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m gtp_benchmarks.performance.{module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", choices=["smollm2_135m", "tiny"], default="smollm2_135m")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are reported")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=["fp32", "bf16"],
        default=list(precisions),
        help="the precisions that are measured",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"), help="folder")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="for converted models")
    return parser


def quiet() -> None:
    """Silence the log messages and future warnings of other libraries."""
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| what | ratio | bar | met | absolute, for scale |", "|---|---|---|---|---|"]
    for figure in figures:
        bar = "" if figure.bar is None else f"{'<=' if figure.at_most else '>='} {figure.bar:g}"
        met = {None: "", True: "yes", False: "**no**"}[figure.met]
        lines.append(f"| {figure.what} | {three_digits(figure.value)} | {bar} | {met} | {figure.absolute} |")
    return "\n".join(lines)


def write_report(
    folder: Path,
    name: str,
    *,
    command: str,
    setup: Mapping[str, Any],
    figures: Sequence[Figure],
    notes: Sequence[str],
    repeats: Mapping[str, Mapping[str, Timing]],
    details: Mapping[str, Any],
) -> str:
    """Writes NAME.json (every repeat) and NAME.md (the table) and returns the latter's text.

    setup: from `machine`. repeats: by section and method. details: what else the JSON should hold.
    """
    below = [in_words(setup), *notes]
    text = "\n".join([table(figures), "", f"`{command}`", "", *(f"- {note}" for note in below), ""])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    values = {
        "command": command,
        "machine": setup,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        "repeats": {
            section: {m: {**asdict(t), "median": t.median, "rate": t.rate} for m, t in methods.items()}
            for section, methods in repeats.items()
        },
        "notes": list(notes),
        **details,
    }
    (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    return text


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes: everything, libraries and weights included.

    VmHWM rather than getrusage: the latter starts at what the parent process had.
    """
    if (bytes_ := process_memory("VmHWM")) is not None:
        return bytes_
    import resource

    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def peak_above(run: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that a function holds above what is held before it.

    On a GPU these are bytes of torch's allocator, otherwise of resident memory, of which Linux is asked to
    forget its earlier peak; where it cannot be asked, that peak is what they are counted from.
    """
    release_free_memory()
    forget_peak(device)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else peak_memory()
    run()
    return (torch.cuda.max_memory_allocated(device) if on_gpu else peak_memory()) - before


def forget_peak(device: torch.device) -> None:
    """Let the peak begin anew at what is held now. Within `peak_above` it then leaves out what was before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_free_memory() -> None:
    """Give freed memory back to the system: it would hide what is allocated next."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)


def process_memory(field: str) -> int | None:
    """Return the bytes of one field of Linux's account of this process, such as RssAnon; None where there is
    none."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:")), None)
    except OSError:
        return None


def three_digits(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def in_words(setup: Mapping[str, Any]) -> str:
    """Return the machine as a sentence for below a table."""
    packages = ", ".join(f"{name} {version}" for name, version in setup["packages"].items())
    return (
        f"{setup['processor']} ({setup['instructions']}), {setup['cores']} cores, "
        f"{setup['threads']} threads, {setup['memory_gib']} GiB, "
        f"load average {setup['load_average']} at the start; "
        f"Python {setup['python']}, {packages}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Stopwatch:
    """Counts calls of some functions inside the block, and the processor's seconds they took."""

    def __init__(self, **places: Any) -> None:
        """By name of the function, the class or module that holds it."""
        self._places = places
        self.calls: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()  # type: ignore[assignment]

    def __enter__(self) -> Stopwatch:
        self._originals = {name: getattr(place, name) for name, place in self._places.items()}
        for name, original in self._originals.items():
            setattr(self._places[name], name, self._timed(name, original))
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self._originals.items():
            setattr(self._places[name], name, original)

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return original(*arguments, **named)
            finally:
                self.calls[name] += 1
                self.seconds[name] += time.process_time() - began  # type: ignore[assignment]

        return timed
