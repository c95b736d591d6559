"""What a whole job takes: the seconds of its stages, and its memory beside that of its own training steps.

    python -m gtp_benchmarks.performance.whole_job                    # 300 rows of the built-in pool
    python -m gtp_benchmarks.performance.whole_job dataset=jsonl 'dataset.files=[pool.jsonl]' dataset.rows=300
    python -m gtp_benchmarks.performance.whole_job --multirun experiment=demo

The command runs as the command line runs it. Memory is the largest resident size of any of its processes,
libraries and weights included. The training steps beside it run in a process of their own, which loads the
same model and takes a few optimizer steps on rows of the same pool, end to end as the job's own are.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import OmegaConf

from gtp_benchmarks.performance.finetuning import Steps
from gtp_benchmarks.performance.measuring import Figure, machine, peak_memory, quiet, write_report
from gtp_exp.config import build
from gtp_exp.data.tokenization import tokenize
from gtp_exp.model.loading import ModelConfig, prepare

JOB = ["dataset.rows=300", "model.precision=fp32", "selector=gtp", "budget=10pct", "launch=cpu"]
BAR = 1.5  # memory of the job over that of its training steps
LOOK_S = 0.1
STEPS = 4


def run_command(overrides: Sequence[str], outputs: Path) -> tuple[float, int]:
    """Run the command; return its seconds and the largest resident bytes of any of its processes.

    Raises RuntimeError where it fails.
    """
    command = [sys.executable, "-m", "gtp_exp", *overrides, f"outputs={outputs}", "tracking=none"]
    began, largest = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            largest = max(largest, *resident(tree))
            time.sleep(LOOK_S)
    if process.returncode:
        raise RuntimeError(f"the job ended with status {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - began, largest


def resident(tree: psutil.Process) -> list[int]:
    """Return the resident bytes of a process and of each of its descendants that still runs."""
    sizes = [0]
    try:
        for one in [tree, *tree.children(recursive=True)]:
            sizes.append(one.memory_info().rss)
    except psutil.NoSuchProcess:  # it has ended since it was listed
        pass
    return sizes


def computed_seconds(outputs: Path) -> dict[str, float]:
    """Return the seconds of each stage, over all runs that did not find it in the cache."""
    seconds: dict[str, float] = {}
    for record in sorted(outputs.glob("runs/**/results.json")):
        for stage, cost in json.loads(record.read_text())["stages"].items():
            seconds[stage] = seconds.get(stage, 0.0) + (0.0 if cost["cached"] else cost["seconds"])
    return seconds


def profile(seconds: Mapping[str, float], whole: float) -> str:
    """Return what took how long, and its share of the whole, as a Markdown table."""
    rest = {"start, data, records and the rest": whole - sum(seconds.values())}
    lines = ["| what | seconds | share |", "|---|---|---|"]
    lines += [f"| {what} | {s:.1f} | {s / whole:.0%} |" for what, s in {**seconds, **rest}.items()]
    return "\n".join([*lines, f"| all | {whole:.1f} | 100% |"])


def take_steps(resolved: Path) -> int:
    """Take training steps with the model of a run on rows of its pool; return the peak memory in bytes."""
    config: Any = OmegaConf.to_container(OmegaConf.load(resolved))
    model_config: ModelConfig = build(config["model"], "model")  # type: ignore[assignment]
    model = prepare(model_config, Path(config["outputs"]) / "cache", torch.device("cpu"))
    source: Any = build(config["dataset"], "dataset")
    examples = list(source.load().examples)
    random.Random(0).shuffle(examples)
    rows = tokenize(tuple(examples), model.tokenizer, max_length=model_config.max_length).examples
    Steps(model.load_trainable(0), packed=True)(rows[: STEPS * config["train"]["batch_size"]])
    return peak_memory()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and its training steps, print the tables and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps-of", type=Path, help=argparse.SUPPRESS)  # what the second process does
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"))
    options, overrides = parser.parse_known_args(argv)
    if options.steps_of:
        print(take_steps(options.steps_of))
        return 0
    setup, overrides = machine(torch.get_num_threads()), overrides or JOB
    with tempfile.TemporaryDirectory(prefix="gtp-exp-") as scratch:
        whole, job_bytes = run_command(overrides, Path(scratch))
        seconds = computed_seconds(Path(scratch))
        resolved = next(Path(scratch).glob("runs/**/resolved.yaml"))
        own = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--steps-of", str(resolved)]
        step_bytes = int(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout.split()[-1])
    figure = Figure(
        "peak memory, the whole job / weights and training steps alone",
        job_bytes / step_bytes,
        f"{job_bytes / 2**20:.0f} : {step_bytes / 2**20:.0f} MiB",
        BAR,
        at_most=True,
    )
    text = write_report(
        options.output,
        "whole_job",
        command="python -m gtp_benchmarks.performance.whole_job " + " ".join(overrides),
        setup=setup,
        figures=[figure],
        notes=[f"{STEPS} training steps; libraries are counted on both sides"],
        repeats={},
        details={"seconds": seconds, "whole_s": whole, "job_bytes": job_bytes, "step_bytes": step_bytes},
    )
    text += "\n" + profile(seconds, whole) + "\n"
    (options.output / "whole_job.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    quiet()
    sys.exit(main())
