"""Choose rows of gradient arrays or stores: the pipeline's selection stage for a caller's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch

from gtp_exp.data.examples import Example
from gtp_exp.decode import checked_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.arrays import (
    DIRECTIONS,
    ArrayFeatures,
    ArrayRows,
    as_matrices,
    check_finite_rows,
    checked_ids,
    checked_rates,
)
from gtp_exp.gradients.end_of_turn import check_whole
from gtp_exp.gradients.imported import checked_subtasks
from gtp_exp.gradients.manifest import check_same_space
from gtp_exp.gradients.store import GradientStore
from gtp_exp.selection.base import Budget, Need, Selection, SelectionProblem, Selector, Unit
from gtp_exp.selection.gtp import GTP
from gtp_exp.selection.subset import select_outside_quarantine

NONE = torch.tensor([], dtype=torch.long)


def select(
    pool: Any,
    target: Any,
    budget: int | float,
    selector: Selector | None = None,
    learning_rates: Sequence[float] | None = None,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    subtasks: Sequence[str] | None = None,
) -> Selection:
    """Choose the rows of the pool whose gradients together reproduce the target's mean gradient.

    pool, target: arrays [N, d] and [n, d] (numpy, torch, memory map), a list of one of each per checkpoint,
    or a GradientStore. target=None aims at the pool's own mean. An array stands for every direction (sgd,
    adam, less) that the selector reads; a memory map is read in chunks, never as a whole.
    budget: a number of rows (int), or the share of the pool (float in (0, 1]).
    selector: GTP() for None; any selector that reads gradients and neither texts nor a model.
    learning_rates: one per checkpoint of the arrays, equal for None; a store has its own.
    seed: of whatever the selector draws. ids: names of the pool's rows, for messages and diagnostics; a store
    has its own. subtasks: the group of each target row, for selectors that aim at each of several.

    Returns the choice: `indices` int64 [M], most important first, `weights` float32 [M] of mean 1, `scores`
    float32 [N], larger is better, and `diagnostics`. The same input and seed give the choice of the command
    line's job, but for what that decides by the rows' texts (turns, ties and parts of some selectors, folds
    of cross-validation): here ids stand for texts in turns, ties and parts, and gradients in folds. Raises
    UserError for input that does not fit, and by row for numbers that are not finite; rows that a store holds
    in quarantine are passed over, as in a job.
    """
    selector = _checked_selector(selector)
    _check_seed(seed)
    pool_parts = pool if isinstance(pool, GradientStore) else as_matrices(pool, "pool")
    target_parts = None
    if target is not None:
        target_parts = target if isinstance(target, GradientStore) else as_matrices(target, "target")
        _check_fit(pool_parts, target_parts)
    n = pool_parts.n if isinstance(pool_parts, GradientStore) else pool_parts[0].shape[0]
    rows_wanted = _checked_budget(budget, n)
    rates = _learning_rates(pool_parts, target_parts, learning_rates)
    pool_ids = _ids(pool_parts, ids)
    target_ids = [] if target_parts is None else _ids(target_parts, None, "target-")
    groups = _groups(target_parts, subtasks, len(target_ids))
    problem = SelectionProblem(
        candidates=[Example(name, ()) for name in pool_ids],
        n_tokens=_n_tokens(pool_parts, n),
        n_completion_tokens=_n_tokens(pool_parts, n),
        target=None
        if target_parts is None
        else [Example(name, (), group) for name, group in zip(target_ids, groups, strict=True)],
        budget=rows_wanted,
        seed=int(seed),
        pool_gradients=_features(pool_parts, rates, pool_ids, "pool"),
        target_gradients=None
        if target_parts is None
        else _features(target_parts, rates, target_ids, "target"),
    )
    selection = select_outside_quarantine(
        selector, problem, _quarantined(pool_parts), _quarantined(target_parts)
    )
    # How many tokens the chosen rows have, prompts included, neither arrays nor stores tell.
    diagnostics = {name: value for name, value in selection.diagnostics.items() if name != "tokens"}
    return replace(selection, diagnostics=diagnostics)


Parts = GradientStore | tuple[ArrayRows, ...]  # one side of the problem: a store, or a matrix per checkpoint


def _checked_selector(selector: Selector | None) -> Selector:
    if selector is None:
        return GTP()
    if isinstance(selector, type):
        raise UserError(f"selector={selector.__name__} is a class; give an object, {selector.__name__}()")
    if not isinstance(selector, Selector):
        raise UserError(
            f"selector={selector!r} is no selector (gtp_exp.selection.base.Selector); give one, such as "
            "gtp_exp.GTP()"
        )
    name = type(selector).__name__
    if Need.GRADIENTS not in selector.needs or Need.MODEL in selector.needs:
        raise UserError(
            f"{name} does not choose by gradients alone, and arrays hold neither texts nor a model; "
            "use it in a job: gtp_exp.run(['selector=...'])"
        )
    for key in ("direction", "target_direction"):
        asked = getattr(selector, key, None)
        if asked is not None and asked not in DIRECTIONS:
            raise UserError(f"selector.{key}={asked} is not one of {', '.join(DIRECTIONS)}")
    check_whole(selector.target_end_of_turn, type(selector).target_end_of_turn, "the target")
    if is_dataclass(selector):  # options of any selector that are given by their words, or of a wrong type
        return replace(selector, **checked_fields(selector, "selector"))  # type: ignore[type-var]
    return selector


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise UserError(f"seed={seed} must lie between 0 and 4294967295")


def _checked_budget(given: Any, n: int) -> Budget:
    """Return rows for an integer, a share of the n rows of the pool for any other number."""
    if isinstance(given, bool) or not isinstance(given, Real):
        raise UserError(
            f"budget={given!r} is not a number; give a number of rows (500) or a share of the pool (0.05)"
        )
    try:
        budget = float(given)
    except OverflowError:
        budget = float("inf")
    if not 0 < budget < float("inf"):
        raise UserError(
            f"budget={given} chooses nothing; give a number of rows (500) or a share of the pool (0.05)"
        )
    if isinstance(given, Integral) and budget > n:
        raise UserError(
            f"budget={given} rows is more than the {n} candidates; give at most {n}, or a share of the pool "
            "such as 0.05"
        )
    if isinstance(given, Integral):
        return Budget(Unit.ROWS, budget)
    if budget > 1:
        meant = f"for {budget:.0f} rows give the int {budget:.0f}" if budget.is_integer() else "5% is 0.05"
        raise UserError(f"budget={budget:g} is a float and above 1, which is the whole pool; {meant}")
    return Budget(Unit.FRACTION, budget)


def _check_fit(pool: Parts, target: Parts) -> None:
    """Raise UserError unless both sides hold the same checkpoints in the same space."""
    if isinstance(pool, GradientStore) and isinstance(target, GradientStore):
        check_same_space(pool.about, target.about)
        return
    (pool_count, pool_dim), (count, dim) = _extent(pool), _extent(target)
    if pool_count != count:
        raise UserError(
            f"the pool has {pool_count} checkpoints and the target {count}; "
            "give one array of each per checkpoint"
        )
    if pool_dim != dim:
        raise UserError(
            f"the pool has {pool_dim} columns and the target {dim}; both must come from the same sketch"
        )


def _extent(parts: Parts) -> tuple[int, int]:
    """Return the number of checkpoints and the dimension."""
    if isinstance(parts, GradientStore):
        return len(parts.learning_rates), parts.dim
    return len(parts), parts[0].shape[1]


def _learning_rates(pool: Parts, target: Parts | None, given: Any) -> tuple[float, ...]:
    """Return those given, those of a store (the pool's first), or equal ones."""
    store = next((side for side in (pool, target) if isinstance(side, GradientStore)), None)
    if store is None:
        return checked_rates(given, _extent(pool)[0])
    if given is not None:
        raise UserError("learning_rates are given, and the gradient store has its own; leave one of them out")
    return store.learning_rates


def _ids(parts: Parts, given: Any, prefix: str = "row-") -> tuple[str, ...]:
    if isinstance(parts, GradientStore):
        if given is not None:
            raise UserError("ids are given, and the gradient store has its own; leave one of them out")
        return parts.ids
    return checked_ids(given, parts[0].shape[0], "row of the pool", prefix)


def _groups(target: Parts | None, given: Any, n: int) -> list[str]:
    """Return the group of each target row: as given, else as its store says, else one of all."""
    if given is None and isinstance(target, GradientStore):
        given = target.subtasks
    return [""] * n if given is None else checked_subtasks(given, n)


def _features(
    parts: Parts, rates: tuple[float, ...], ids: Sequence[str], name: str
) -> GradientStore | ArrayFeatures:
    if isinstance(parts, GradientStore):
        return parts
    check_finite_rows(parts, ids, name)
    return ArrayFeatures(parts, rates)


def _n_tokens(parts: Parts, n: int) -> torch.Tensor:
    return parts.n_tokens if isinstance(parts, GradientStore) else torch.zeros(n, dtype=torch.long)


def _quarantined(parts: Parts | None) -> torch.Tensor:
    return parts.quarantined if isinstance(parts, GradientStore) else NONE
