"""Select within parts of the pool, then among what was chosen there: for pools beyond one node.

Each part is a problem of its own with the same target and the same budget, so the parts need no word from
each other; the last step reads the union of their choices alone, and what a part has passed over is lost. A
part that nothing can be chosen from adds nothing, unless the others have fewer rows than the budget asks for.
Where tokens are left that a row outside of the union would take, such rows join it, and the last step is
taken again.
GreeDi (Mirzasoleiman et al., arXiv 1411.0541) does the same for submodular selection.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from gtp_exp.distributed import ALONE
from gtp_exp.errors import NothingToChoose, UserError
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.gradients.picked import SomeFeatures
from gtp_exp.selection.atoms.sharded import Slice, share_of
from gtp_exp.selection.base import Selection, SelectionProblem, Selector, Unit
from gtp_exp.selection.subset import others, some_candidates

MORE = 1024  # rows that join the union at a time, where tokens are left


def select_in_parts(selector: Selector, problem: SelectionProblem, parts: int, direction: str) -> Selection:
    """Return what the selector chooses among its choices within the parts, which the processes divide.

    direction: of the candidates' gradients, the only one that the last step is given.
    """
    if problem.target is None:
        raise UserError(
            f"selector.partitions={parts} needs target rows: in-domain the target is the mean of the whole "
            "pool, which no part sees; set selector.partitions=1"
        )
    n, processes = len(problem.candidates), problem.processes
    assert problem.pool_gradients is not None
    if not 1 <= parts <= n:
        raise UserError(f"selector.partitions={parts} must lie between 1 and the {n} candidates")
    alone, own = replace(problem, processes=ALONE), {}
    for p in range(processes.rank, parts, processes.size):
        span = share_of(n, p, parts)
        index = torch.arange(span.start, span.stop)
        part = SomeFeatures(problem.pool_gradients, len(span), partial(Slice, span=span))
        try:
            chosen = selector.select(some_candidates(alone, index, part))
        except NothingToChoose as error:
            own[p] = (index[:0], torch.zeros(len(index)), str(error))
        else:
            own[p] = (chosen.indices + span.start, chosen.scores, chosen.diagnostics.get("refit"))
    by_part: dict[int, Any] = {}
    for of_process in processes.all_gather(own):
        by_part |= of_process
    union = torch.cat([by_part[p][0] for p in range(parts)]).sort().values
    if not len(union):
        raise NothingToChoose(by_part[0][2])
    union = _enough(union, n, problem.budget.rows(n) or 0)

    merged = selector.select(_of_union(alone, union, direction))
    while len(more := _affordable(problem, union, union[merged.indices])):
        union = torch.cat([union, more]).sort().values
        merged = selector.select(_of_union(alone, union, direction))
    diagnostics = {
        **merged.diagnostics,
        "partitions": parts,
        "rows_after_partitions": len(union),
        "refits_of_partitions": [by_part[p][2] for p in range(parts)],
    }
    scores = torch.cat([by_part[p][1] for p in range(parts)])
    return Selection(union[merged.indices], merged.weights, scores, diagnostics)


def _of_union(problem: SelectionProblem, union: torch.Tensor, direction: str) -> SelectionProblem:
    """Return the problem of the union's rows int64 [k], whose gradients in one direction are in memory."""
    pool = problem.pool_gradients
    assert pool is not None
    gathered = tuple(
        {direction: pool.features(t, direction).rows(union)} for t in range(len(pool.learning_rates))
    )
    return some_candidates(problem, union, MemoryFeatures(gathered, pool.learning_rates))


def _affordable(problem: SelectionProblem, union: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return rows int64 [<= MORE] outside of the union that what is left of a budget of tokens would pay, the
    cheapest: the dearer ones no longer fit once there is a choice among these."""
    if problem.budget.unit is not Unit.TOKENS:
        return union[:0]
    left = int(problem.budget.amount) - int(problem.n_tokens[chosen].sum())
    rest = others(len(problem.candidates), union)
    rest = rest[problem.n_tokens[rest] <= left]
    return rest[problem.n_tokens[rest].argsort(stable=True)[:MORE]]


def _enough(union: torch.Tensor, n: int, rows: int) -> torch.Tensor:
    """Return the union int64 [k], ascending, with as many of the n candidates that it lacks, in order, as it
    is short of the rows wanted."""
    return torch.cat([union, others(n, union)[: max(0, rows - len(union))]]).sort().values
