"""How long does a job of a multirun take whose stages are all cached, in a fresh process and in a forked one?

    python -m gtp_benchmarks.performance.job_start

One job fills a cache; then the same job is run again and again, in turn by a fresh Python process and by a
process that is forked from the server, through the launcher that the command line uses. What is timed is a
whole job: from its start, over imports, configuration, data, tokenisation and the look-up of every stage, to
its end. The server's own start, which the first job of a multirun waits for, is timed apart.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from gtp_benchmarks.performance.measuring import (
    Figure,
    Timing,
    interleaved,
    machine,
    three_digits,
    write_report,
)
from gtp_exp.launch.launcher import Device, Launch, run_worker

JOB = ["+debug=quick", "selector=gtp", "launch=cpu"]
BAR_S = 1.0


def fill_cache(folder: Path, overrides: Sequence[str]) -> Path:
    """Run the job once in `folder` by the command line; return its resolved.yaml."""
    line = [sys.executable, "-m", "gtp_exp", f"outputs={folder}/outputs", f"hydra.run.dir={folder}/run"]
    subprocess.run([*line, *overrides], check=True)
    return folder / "run" / "resolved.yaml"


def run_cached(resolved: Path, launch: Launch, *, forked: bool) -> None:
    """Run the job to its end; raise RuntimeError where it does not complete."""
    ended = run_worker(resolved, launch, more_follow=forked)
    if ended.code:
        raise RuntimeError(f"the job did not complete: {ended}")


def time_jobs(resolved: Path, launch: Launch, repeats: int) -> tuple[dict[str, Timing], float]:
    """Return the times of a job by both ways, and that of the first forked one, which starts the server."""
    began = time.perf_counter()
    run_cached(resolved, launch, forked=True)
    first = time.perf_counter() - began
    methods = {
        "fresh": lambda: run_cached(resolved, launch, forked=False),
        "forked": lambda: run_cached(resolved, launch, forked=True),
    }
    with tqdm(total=2 * repeats, unit="job") as progress:
        timings = interleaved(
            methods, repeats, amount=1, started=progress.set_postfix_str, finished=progress.update
        )
    return timings, first


def figures(timings: dict[str, Timing], first: float) -> list[Figure]:
    """Return the lines of the table."""
    fresh, forked = timings["fresh"], timings["forked"]
    each = ["/".join(three_digits(s) for s in timing.seconds) for timing in (fresh, forked)]
    return [
        Figure(
            "a cached job, fresh process / forked",
            fresh.median / forked.median,
            f"{three_digits(fresh.median)} : {three_digits(forked.median)} s; {each[0]} : {each[1]} s",
        ),
        Figure(
            "seconds of a cached job, forked",
            forked.median,
            f"slowest {max(forked.seconds):.2f} s",
            BAR_S,
            True,
        ),
        Figure(
            "the first job, which starts the server / fresh process",
            first / fresh.median,
            f"{three_digits(first)} : {three_digits(fresh.median)} s",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*", default=JOB, help="the job, as the command line takes it")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"))
    options = parser.parse_args(argv)
    setup = machine(torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="gtp-exp-") as scratch:
        resolved = fill_cache(Path(scratch), options.overrides)
        timings, first = time_jobs(resolved, Launch(Device.CPU), options.repeats)
    text = write_report(
        options.output,
        "job_start",
        command="python -m gtp_benchmarks.performance.job_start " + " ".join(argv or sys.argv[1:]),
        setup=setup,
        figures=figures(timings, first),
        notes=["Every stage was cached; the launcher looks every tenth of a second whether a job has ended."],
        repeats={"cached job": timings},
        details={"first_forked_s": first},
    )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
