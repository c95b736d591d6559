"""The stage that selects rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gtp_exp.cache import StageResult
from gtp_exp.config import describe
from gtp_exp.data.hashing import digest
from gtp_exp.distributed import ALONE
from gtp_exp.files import MANIFEST, read_sealed
from gtp_exp.gradients.end_of_turn import WeighedEndOfTurn, shares
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.matching import GivenStore
from gtp_exp.gradients.weight import Balance
from gtp_exp.inputs import Inputs
from gtp_exp.model.loading import Model
from gtp_exp.model.loss import Reduction
from gtp_exp.selection.base import Budget, Need, Selection, SelectionProblem, Selector
from gtp_exp.selection.subset import select_outside_quarantine
from gtp_exp.stages.gradients import GradientStores, read_quarantined, read_store
from gtp_exp.stages.passes import KeptPasses
from gtp_exp.stages.runner import StageRunner


@dataclass(frozen=True)
class SelectionSources:
    """Holds what a selection is made from."""

    chooser: Model
    tuned: Model  # whose tokens a budget counts
    inputs: Inputs
    gradients: GradientStores
    reduction: Reduction = Reduction.MEAN  # of a row's loss, in its gradient


def select(
    runner: StageRunner, sources: SelectionSources, selector: Selector, budget: Budget, seed: int
) -> StageResult:
    """Choose rows among the candidates within the budget."""
    chooser, inputs, gradients = sources.chooser, sources.inputs, sources.gradients
    scores = {name: inputs.scores.get(name, ()) for name in selector.score_columns()}

    def produce(directory: Path) -> None:
        passes = KeptPasses(runner.cache.root, chooser.identity, directory)
        loaded = replace(chooser.load(), keep=passes) if Need.MODEL in selector.needs else None
        tokenized = inputs.candidates.tokenized
        problem = SelectionProblem(
            candidates=inputs.candidates.examples,
            n_tokens=torch.tensor([row.n_tokens for row in tokenized]),
            n_completion_tokens=torch.tensor([row.n_completion_tokens for row in tokenized]),
            target=None if inputs.target is None else inputs.target.examples,
            budget=budget,
            seed=seed,
            pool_gradients=None if gradients.pool is None else read_store(gradients.pool),
            target_gradients=target_gradients(sources, selector),
            model=loaded,
            candidate_tokens=inputs.candidates_to_select.tokenized,
            target_tokens=() if inputs.target is None else inputs.target.tokenized,
            processes=runner.processes if selector.distributed else ALONE,
            scores={name: torch.tensor(column, dtype=torch.float64) for name, column in scores.items()},
        )
        selection = select_outside_quarantine(
            selector,
            problem,
            read_quarantined(gradients.pool),
            torch.cat([read_quarantined(gradients.target), read_quarantined(gradients.end_of_turn)]).unique(),
        )
        if runner.processes.main:
            _write_selection(selection, directory)
            passes.finish()

    reads = {
        "selector": describe(selector),
        "version": selector.version,
        # A selector that takes the same rows at every budget is computed, trained and tested once.
        "budget": None if selector.ignores_budget else describe(budget),
        "seed": seed,
        "model": chooser.identity,
        "pool": inputs.candidates.key,
        "target": None if inputs.target is None else inputs.target.key,
        "gradients": gradients.keys(),
    }
    if more := {**selector.reads(), **({"scores": digest(scores)} if scores else {})}:
        reads["more"] = more
    if sources.tuned is not chooser:
        reads["tokens counted for"] = sources.tuned.identity
        reads["pool as it chooses"] = inputs.candidates_to_select.key
    return runner.run_stage("selection", reads, produce, together=selector.distributed)


def target_gradients(sources: SelectionSources, selector: Selector) -> GradientFeatures | None:
    """Return the target's gradients with the selector's weight of the end of turn; None without any."""
    stores, target = sources.gradients, sources.inputs.target
    if stores.target is None or target is None:
        return None
    store = read_store(stores.target)
    weight = selector.target_end_of_turn
    if weight == 1 or isinstance(stores.target, GivenStore):
        return store
    return WeighedEndOfTurn(
        content=store,
        end=None if stores.end_of_turn is None else read_store(stores.end_of_turn),
        shares=None if isinstance(weight, Balance) else shares(target.tokenized, sources.reduction, weight),
    )


def _write_selection(selection: Selection, directory: Path) -> None:
    """Write a selection as `read_selection` reads it."""
    arrays = {"indices": selection.indices, "weights": selection.weights, "scores": selection.scores}
    arrays = {name: array.contiguous() for name, array in arrays.items()}
    save_file(arrays, directory / "selection.safetensors")
    (directory / "diagnostics.json").write_text(json.dumps(dict(selection.diagnostics), allow_nan=False))


def read_selection(result: StageResult) -> Selection:
    """Return the choice that `select` has made."""
    arrays = load_file(result.directory / "selection.safetensors")
    diagnostics = json.loads((result.directory / "diagnostics.json").read_text())
    return Selection(**arrays, diagnostics=diagnostics)


def read_beside_rows(selected: StageResult) -> dict[str, Any]:
    """Return what a choice depended on besides its settings, the rows and their gradients, as its cache entry
    tells: JSON values by name, none for most selectors."""
    return (read_sealed(selected.directory / MANIFEST) or {}).get("reads", {}).get("more", {})
