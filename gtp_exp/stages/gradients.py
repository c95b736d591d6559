"""The stage that stores the gradients of rows, and what is read from its stores."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from gtp_exp.cache import StageResult
from gtp_exp.errors import UserError
from gtp_exp.gradients.checkpoints import load_checkpoint
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.end_of_turn import content_of, end_of
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.given import GivenGradients
from gtp_exp.gradients.manifest import read_manifest
from gtp_exp.gradients.matching import GivenStore
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.store import GradientStore
from gtp_exp.inputs import Inputs, PreparedRows
from gtp_exp.model.loading import Model
from gtp_exp.selection.base import Selector
from gtp_exp.stages.runner import StageRunner

log = logging.getLogger(__name__)


Gradients = StageResult | GivenStore  # what `collect_gradients` has stored, or a store that was there


@dataclass(frozen=True)
class GradientStores:
    """Names the gradients of pool and target; None where there are none to read."""

    pool: Gradients | None = None
    target: Gradients | None = None
    end_of_turn: Gradients | None = None  # of the target's rows; `target` is then of their other tokens

    def keys(self) -> list[str | None]:
        """Return the keys of the gradients of pool and target, and of the end of turn where it is apart."""
        apart = [] if self.end_of_turn is None else [self.end_of_turn]
        return [None if store is None else store.key for store in (self.pool, self.target, *apart)]


def collect_gradients(
    runner: StageRunner,
    model: Model,
    split: str,
    rows: PreparedRows,
    trajectory: StageResult,
    gradients: GradientConfig,
    proven: Engine | None = None,
) -> StageResult:
    """Sketch the gradient of every row at every checkpoint of the trajectory. split: "pool" or "target".

    proven: an engine that needs no comparison with autograd any more, as `proven_engine` finds it.
    """

    def produce(directory: Path) -> None:
        names = json.loads((trajectory.directory / "trajectory.json").read_text())
        collect(
            model.load_trainable(gradients.seed).model,
            rows.tokenized,
            [load_checkpoint(trajectory.directory / name) for name in names],
            directory / "store",
            gradients,
            label=f"{split} gradients",
            proven=proven,
            processes=runner.processes,
        )

    reads = {"warmup": trajectory.key, "split": split, "rows": rows.key, "settings": gradients.reads()}
    return runner.run_stage("gradients", reads, produce, cost=f"gradients: {split}")


def proven_engine(made: StageResult) -> Engine | None:
    """Return the engine that this process has just trusted with a store; None for a store that was there, and
    for rows that were taken one by one, which may be for their length: shorter ones may do with a faster one.
    """
    engine = None if made.cached else Engine(read_manifest(made.directory / "store")["engine"])
    return None if engine is Engine.AUTOGRAD else engine


def rows_with_gradients(inputs: Inputs, selector: Selector) -> list[tuple[str, PreparedRows]]:
    """Return the rows whose gradients a selector reads, each with its split, in GradientStores' order.

    Where the end of turn has another weight than 1 in the target, target rows appear with loss on their other
    tokens and, unless it is left out, once more with loss on the end of turn alone.
    """
    target, weight = inputs.target, selector.target_end_of_turn
    parts: list[PreparedRows] = []
    if target is not None and weight == 1:
        parts = [target]
    elif target is not None:
        parts = [target.with_tokens(content_of(target.tokenized))]
        if weight != 0:
            parts.append(target.with_tokens(end_of(target.tokenized)))
    return [("pool", inputs.candidates_to_select), *(("target", part) for part in parts)]


def check_quarantine(
    split: str, rows: PreparedRows, store: Gradients, gradients: GradientConfig | GivenGradients
) -> None:
    """Warn of rows whose gradient is not finite; raise UserError above the share that is tolerated."""
    ids = [rows.examples[i].id for i in read_quarantined(store).tolist()]
    if not ids:
        return
    n = len(rows.examples)
    named = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    message = f"the gradient of {len(ids)} of {n} {split} rows is not finite: {named}"
    if len(ids) > gradients.max_quarantined_share * n:
        raise UserError(
            f"{message}; gradients.max_quarantined_share={gradients.max_quarantined_share} allows fewer: "
            f"{gradients.remedy}"
        )
    log.warning("%s; they are neither chosen nor aimed at", message)


def read_store(gradients: Gradients) -> GradientFeatures:
    """Open the gradients of the job's rows."""
    return gradients.features() if isinstance(gradients, GivenStore) else _opened(gradients)


def _opened(result: StageResult) -> GradientStore:
    return GradientStore.open(result.directory / "store")


def read_quarantined(gradients: Gradients | None) -> torch.Tensor:
    """Return the rows whose gradient is not finite, int64; none where there is no store."""
    if gradients is None:
        return torch.tensor([], dtype=torch.long)
    return (gradients if isinstance(gradients, GivenStore) else _opened(gradients)).quarantined
