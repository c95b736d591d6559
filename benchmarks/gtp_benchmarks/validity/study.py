"""Prepare a study by a job's stages: data, held-back rows, trajectory, gradients, and what scores rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from gtp_baselines.bm25 import BM25
from gtp_baselines.top_k import Similarity, TopK
from gtp_benchmarks.validity.subsets import Subset, draw, recipes, rising
from gtp_benchmarks.validity.targets import target_like
from gtp_exp.cache import Cache
from gtp_exp.errors import UserError
from gtp_exp.experiment import (
    Experiment,
    collect_all_gradients,
    prepare_models,
    reduction_of,
    start_processes,
)
from gtp_exp.gradients.end_of_turn import LINEAR
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.picked import picked
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.weight import Balance, Weight
from gtp_exp.inputs import Inputs, Overlap, PreparedTask, load_inputs
from gtp_exp.model.loading import Model
from gtp_exp.paths import at_home
from gtp_exp.selection.base import Selector
from gtp_exp.selection.subset import others
from gtp_exp.stages.gradients import GradientStores, read_quarantined, read_store, rows_with_gradients
from gtp_exp.stages.runner import StageRunner
from gtp_exp.stages.selection import SelectionSources, read_selection, select, target_gradients
from gtp_exp.stages.training import warm_up
from gtp_exp.tracking import Journal, NoTracker

# The weights of the end of turn in target rows, by the names that objectives give them.
WEIGHTS: Mapping[str, Weight] = {"1": 1.0, "0": 0.0, "balanced": Balance.BALANCED}
TARGET_LIKE = "target-like"
BM25_NAME = "bm25"
# What prefers rows by their gradients, and the weight of the end of turn that it looks at.
GRADIENT_PREFERENCES: Mapping[str, TopK] = {
    "dot": TopK(similarity=Similarity.DOT),
    "cosine": TopK(),
    "cosine of content": TopK(target_end_of_turn=0.0),
    "cosine of less": TopK(direction="less"),
}


@dataclass(frozen=True)
class Study:
    """Holds what subsets are drawn from, judged by and measured on.

    `inputs` have no test rows: these are in `tests`, which nothing but the measurement of a trained model
    reads.
    """

    experiment: Experiment
    runner: StageRunner
    inputs: Inputs
    tests: tuple[PreparedTask, ...]
    tuned: Model
    chooser: Model
    stores: Mapping[str, GradientStores]  # by the weight of the end of turn, as in WEIGHTS
    size: int  # rows of a subset

    def sources(self, weight: str | None = None) -> SelectionSources:
        """Return what a selector reads, with the gradients for one weight of the end of turn; without any
        for None."""
        stores = GradientStores() if weight is None else self.stores[weight]
        return SelectionSources(
            self.chooser, self.tuned, self.inputs, stores, reduction_of(self.experiment.gradients)
        )

    def pool(self) -> GradientFeatures:
        """Return the gradients of all candidates."""
        store = self.stores["1"].pool
        assert store is not None
        return read_store(store)

    def targets(self) -> dict[str, GradientFeatures]:
        """Return the gradients of the target rows that are finite, by the weight of the end of turn."""
        found: dict[str, GradientFeatures] = {}
        for name, weight in WEIGHTS.items():
            features = target_gradients(self.sources(name), TopK(target_end_of_turn=weight))
            assert features is not None
            quarantined = [
                read_quarantined(store) for store in (self.stores[name].target, self.stores[name].end_of_turn)
            ]
            found[name] = picked(features, others(features.n, torch.cat(quarantined).unique()))
        return found

    def allowed(self) -> torch.Tensor:
        """Return which candidates may be drawn, bool [N]: those whose gradient is finite."""
        allowed = torch.ones(len(self.inputs.candidates.examples), dtype=torch.bool)
        allowed[read_quarantined(self.stores["1"].pool)] = False
        return allowed


def prepare_study(experiment: Experiment) -> Study:
    """Read the data, hold validation rows back from the target, and collect the gradients.

    Raises UserError for a job in which there is nothing to hold back, or no plain gradient to compare with.
    """
    settings, gradients = experiment.settings, experiment.gradients
    if experiment.launch.num_processes != 1:
        raise UserError("launch.num_processes must be 1: subsets are trained one after the other")
    if not isinstance(gradients, GradientConfig):
        raise UserError(
            "a study collects the gradients of rows that it makes; choose gradients=lora_trajectory"
        )
    if LINEAR not in [direction.value for direction in gradients.directions]:
        raise UserError(f"gradients.directions lacks {LINEAR}, the target's; add it")
    processes, device = start_processes(experiment.launch)
    if experiment.launch.threads:
        torch.set_num_threads(experiment.launch.threads)
    cache = Cache(at_home(settings.outputs) / "cache", processes)
    runner = StageRunner(cache, Journal(None, NoTracker()))
    tuned, chooser = prepare_models(experiment.model, experiment.selection_model, cache, device)
    inputs = load_inputs(
        experiment.dataset, experiment.benchmark, tuned, chooser, validation=settings.validation
    )
    if inputs.target is None:
        raise UserError(
            "the benchmark has no target rows; choose one that has, such as benchmark=skills_target"
        )
    size = experiment.budget.rows(len(inputs.candidates.examples))
    if size is None:
        raise UserError("subsets have a number of rows: use budget=rows budget.amount=60, or a share")
    Overlap(inputs)
    tests = load_inputs(experiment.dataset, experiment.benchmark, tuned, tuned).tasks
    Overlap(replace(inputs, tasks=tests, validation=None))
    trajectory = warm_up(runner, chooser, inputs.candidates_to_select, gradients)
    stores = {}
    for name, weight in WEIGHTS.items():
        rows = rows_with_gradients(inputs, TopK(target_end_of_turn=weight))
        stores[name] = collect_all_gradients(runner, chooser, rows, trajectory, gradients)
    return Study(experiment, runner, inputs, tests, tuned, chooser, stores, size)


def scores(study: Study, selector: Selector, weight: str | None) -> torch.Tensor:
    """Return what a selector gives each candidate, float32 [N]; larger is better."""
    chosen = select(
        study.runner,
        study.sources(weight),
        selector,
        study.experiment.budget,
        study.experiment.settings.seed,
    )
    return read_selection(chosen).scores


def draw_subsets(study: Study, count: int, seed: int) -> list[Subset]:
    """Return the subsets of a study, in an order of which every beginning is about as mixed as the whole."""
    stored = study.pool().directions
    preferred = {
        name: scores(study, selector, "0" if selector.target_end_of_turn == 0 else "1")
        for name, selector in GRADIENT_PREFERENCES.items()
        if selector.direction in stored
    }
    preferred[BM25_NAME] = scores(study, BM25(), None)
    chances = {name: rising(values, study.size) for name, values in preferred.items()}
    chances[TARGET_LIKE] = target_like(study.inputs).double()
    allowed = study.allowed()
    return [draw(recipe, chances, allowed, study.size, seed) for recipe in recipes(count, list(chances))]
