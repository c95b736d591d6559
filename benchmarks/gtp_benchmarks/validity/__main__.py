"""Settle which objective is worth pursuing: train on many subsets, and see which one orders their losses.

    python -m gtp_benchmarks.validity [--subsets 100] [--draw-seed 0] [--folder DIR] [OVERRIDES of a job]

The overrides are those of the command line: model, dataset, benchmark, gradients, train and budget mean what
they mean for a job, `validation.share` of the target's rows is held back, and the selector is of no use. The
run writes into --folder (default: OUTPUTS/validity) after every subset:

    subsets.json     how each subset was drawn, and its values of all objectives and facts; before training
    results.jsonl    a line per trained subset: recipe, rows, losses on validation and test rows
    report.md, .json the correlations so far

Everything is cached as a job's stages are: the same command goes on after a kill, and trains nothing twice.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gtp_benchmarks.validity.facts import facts_of
from gtp_benchmarks.validity.measure import LOSS, TEST, VALIDATION, measure, train_on
from gtp_benchmarks.validity.objectives import Objective, evaluate_objectives
from gtp_benchmarks.validity.report import Progress, write_report
from gtp_benchmarks.validity.study import Study, draw_subsets, prepare_study
from gtp_benchmarks.validity.subsets import Subset
from gtp_exp.api.start import check_arguments, conf_dir
from gtp_exp.errors import UserError
from gtp_exp.estimate.jobs import compose_jobs
from gtp_exp.files import write_json, write_whole
from gtp_exp.paths import at_home
from gtp_exp.worker import assemble

VERSION = 2  # of the objectives' values; raise it when they change for equal gradients
REPORT_EVERY = 5  # subsets


def run_study(study: Study, count: int, draw_seed: int, folder: Path) -> Progress:
    """Draw the subsets, evaluate the objectives, then train and measure one subset after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    subsets = draw_subsets(study, count, draw_seed)
    objectives = cached_objectives(study, subsets)
    facts = facts_of(study, subsets)
    untuned = measure(study, None)
    validation = study.inputs.validation
    about = {
        "planned": count,
        "size": study.size,
        "draw_seed": draw_seed,
        "validation": 0 if validation is None else len(validation.examples),
        "untuned": untuned,
    }
    told = {
        **about,
        "subsets": [asdict(subset) for subset in subsets],
        "objectives": {objective.name: values for objective, values in objectives.items()},
        "facts": facts,
    }
    write_json(folder / "subsets.json", told)
    measured: list[Mapping[str, Mapping[str, float]]] = []
    lines = []
    progress = Progress(objectives, facts, measured, about)
    with tqdm(subsets, desc="subsets", unit="subset") as bar:
        for subset in bar:
            tuned = train_on(study, subset.rows)
            measured.append(measure(study, tuned))
            lines.append(json.dumps(_line(study, subset, measured[-1], tuned.key), ensure_ascii=False) + "\n")
            write_whole(folder / "results.jsonl", lines)
            bar.set_postfix({part: f"{measured[-1][part][LOSS]:.3f}" for part in (VALIDATION, TEST)})
            if len(measured) % REPORT_EVERY == 0 or len(measured) == count:
                write_report(folder, progress)
    return progress


def cached_objectives(study: Study, subsets: Sequence[Subset]) -> dict[Objective, list[float]]:
    """Return the value of every objective for each subset, which are computed once for the same gradients."""

    def produce(directory: Path) -> None:
        indices = [torch.tensor(subset.rows) for subset in subsets]
        values = evaluate_objectives(study.pool(), study.targets(), indices)
        told = [[asdict(objective), column] for objective, column in values.items()]
        (directory / "objectives.json").write_text(json.dumps(told))

    reads = {
        "gradients": {name: stores.keys() for name, stores in study.stores.items()},
        "subsets": [subset.rows for subset in subsets],
    }
    made = study.runner.cache.stage("objectives", VERSION, reads, produce)
    told = json.loads((made.directory / "objectives.json").read_text())
    return {Objective(**objective): column for objective, column in told}


def _line(study: Study, subset: Subset, losses: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what results.jsonl tells of a subset."""
    ids = [study.inputs.candidates.examples[row].id for row in subset.rows]
    return {**asdict(subset.recipe), "preferred": subset.preferred, **losses, "finetune": key, "ids": ids}


def main(arguments: Sequence[str]) -> int:
    """Run the study that the command line describes; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gtp_benchmarks.validity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--subsets", type=int, default=100, help="how many to train (default 100)")
    parser.add_argument("--draw-seed", type=int, default=0, help="of the subsets that are drawn (default 0)")
    parser.add_argument("--folder", type=Path, help="for the results (default: validity in outputs)")
    parser.add_argument("overrides", nargs="*", help="of a job, such as model=tiny budget=rows")
    asked = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        if asked.subsets < 1 or asked.draw_seed < 0:
            raise UserError("--subsets must be 1 or more, and --draw-seed 0 or more")
        check_arguments(asked.overrides)
        jobs = compose_jobs(asked.overrides, conf_dir())
        if len(jobs) != 1:
            raise UserError(f"the overrides stand for {len(jobs)} jobs; give those of one")
        experiment = assemble(jobs[0]["config"])
        folder = asked.folder or at_home(experiment.settings.outputs) / "validity"
        run_study(prepare_study(experiment), asked.subsets, asked.draw_seed, folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    print(f"see {folder / 'report.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
