"""Choose from gradient stores that are there: which rows of a store are the job's, and what is its target."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from gtp_exp.data.examples import Example, TokenizedExample
from gtp_exp.data.hashing import rows_hash
from gtp_exp.errors import UserError
from gtp_exp.gradients.given import GivenGradients
from gtp_exp.gradients.matching import GivenStore, is_numbered, match_rows
from gtp_exp.gradients.store import GradientStore
from gtp_exp.inputs import Inputs, PreparedRows
from gtp_exp.selection.base import Selector
from gtp_exp.stages.gradients import check_quarantine
from gtp_exp.stages.runner import StageRunner

log = logging.getLogger(__name__)


def open_given(
    runner: StageRunner, inputs: Inputs, gradients: GivenGradients, selector: Selector
) -> tuple[Inputs, Mapping[str, GivenStore]]:
    """Open the stores that are given by split (pool, target), and match them with the rows of the job.

    Return them with the inputs, whose target may be the store's own rows. Raise UserError for stores that do
    not fit each other, the rows or the selector.
    """
    gradients.check(getattr(selector, "direction", None), getattr(selector, "target_direction", None))
    inputs, stores = match_stores(inputs, gradients)
    rows = {"pool": inputs.candidates_to_select, "target": inputs.target}
    for split, store in stores.items():
        part = rows[split]
        assert part is not None
        if len(set(runner.processes.all_gather(store.key))) > 1:
            raise UserError(f"the processes of the job have found different stores as gradients.{split}")
        runner.note(f"gradients: {split}", store.key)
        check_quarantine(split, part, store, gradients)
    return inputs, stores


def match_stores(inputs: Inputs, gradients: GivenGradients) -> tuple[Inputs, Mapping[str, GivenStore]]:
    """Return the given stores by split (pool, target), and the inputs with the target that is aimed at.

    That is the benchmark's target where the store has its rows, else the store's own rows. Raise UserError
    where the stores do not fit the data.
    """
    if inputs.target is None and gradients.target is not None:
        raise UserError(
            "gradients.target is given, and the benchmark aims at the pool itself; leave it out, or choose a "
            "benchmark with a target"
        )
    if inputs.target is not None and gradients.target is None:
        raise UserError(
            f"the benchmark has a target of {len(inputs.target.examples)} rows, and gradients.target is not "
            "given; give a store of its gradients, or benchmark=pool_held_out to aim at the pool"
        )
    stores = {"pool": _match_pool(inputs, GradientStore.open(gradients.folder("pool")))}
    if gradients.target is not None:
        store = GradientStore.open(gradients.folder("target"))
        target, stores["target"] = _match_target(inputs, store)
        inputs = replace(inputs, target=target)
    return inputs, stores


def _match_pool(inputs: Inputs, store: GradientStore) -> GivenStore:
    """Match by id; a store without ids has a row for each row of the data set, in its order."""
    candidates = inputs.candidates_to_select
    wanted, read = [row.id for row in candidates.examples], [row.id for row in inputs.pool.examples]
    if is_numbered(store.ids) and not set(wanted) <= set(store.ids):
        if store.n != len(read):
            raise UserError(
                f"gradients.pool: {store.directory} has {store.n} rows without ids, and the pool "
                f"{len(read)}{_without(inputs)}; import it with --ids"
            )
        log.warning("gradients.pool has no ids: its rows are taken to be the pool's, in the same order")
        return GivenStore(store, torch.tensor(inputs.candidates.positions, dtype=torch.long))
    elsewhere = [row.id for test in inputs.all_tasks for row in test.task.held_out]
    if inputs.validation is not None:
        elsewhere += [row.id for row in inputs.validation.examples]
    return match_rows("pool", store, wanted, [*read, *elsewhere])


def _without(inputs: Inputs) -> str:
    """Say how many rows of the data set could not be read."""
    skipped = sum(inputs.pool.skipped.values())
    return f" (without {skipped} that were left out on reading)" if skipped else ""


def _match_target(inputs: Inputs, store: GradientStore) -> tuple[PreparedRows, GivenStore]:
    """Match by id. A store that has none of the benchmark's target rows is a target of its own."""
    rows = inputs.target
    assert rows is not None
    wanted = [row.id for row in rows.examples]
    held_back = [] if inputs.validation is None else [row.id for row in inputs.validation.examples]
    labels = store.subtasks
    if set(store.ids).isdisjoint(wanted):
        if held_back:
            raise UserError(
                "until=validation holds back rows of the benchmark's target, and gradients.target has none "
                "of them; import it with --ids of the benchmark's rows"
            )
        log.warning(
            "gradients.target has none of the benchmark's %d target rows: its own %d rows are the target",
            *(len(wanted), store.n),
        )
        groups = labels or ("",) * store.n
        examples = [Example(name, (), group) for name, group in zip(store.ids, groups, strict=True)]
        tokens = tuple(TokenizedExample(name, (), ()) for name in store.ids)
        return _prepared(examples, tokens, rows), GivenStore(store, torch.arange(store.n))
    given = match_rows("target", store, wanted, [*wanted, *held_back])
    if labels is not None:
        pairs = zip(rows.examples, given.order.tolist(), strict=True)
        rows = _prepared([replace(row, subtask=labels[i]) for row, i in pairs], rows.tokenized, rows)
    return rows, given


def _prepared(
    examples: Sequence[Example], tokens: tuple[TokenizedExample, ...], before: PreparedRows
) -> PreparedRows:
    """Return other rows in place of some, under a key of their own."""
    positions, key = tuple(range(len(examples))), rows_hash(examples, tokens)
    return replace(before, examples=tuple(examples), tokenized=tokens, positions=positions, key=key)
