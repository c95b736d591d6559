"""How the scores of a candidate against many target rows become one choice; one option for all selectors.

Target rows are grouped, and a candidate's similarity to a group is the mean over the group's rows:

    mean         one group of all rows; the largest similarities are chosen
    max_subtask  one group per subtask; a candidate counts by its best subtask (LESS)
    round_robin  every row is a group; in turn each chooses its most similar candidate that is left. The
                 turns are in an order that the seed draws: a budget that ends within a round would
                 otherwise serve the rows that a file begins with, which are often of one kind

Comparing selectors must not compare aggregations, so the option is theirs to set and ours to write once.
Where the similarity is linear in the target (a cosine is, in unit vectors), only the groups' means are
compared with the pool. In-domain the pool is one group: its rows cannot take turns, for each would choose
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from gtp_baselines.ranking import rank, tie_order
from gtp_exp.selection.base import SelectionProblem


class Aggregation(Enum):
    """Name how similarities to many target rows become one choice; see above."""

    MEAN = "mean"
    MAX_SUBTASK = "max_subtask"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True)
class Groups:
    """Which group each target row belongs to; in-domain the target rows are the candidates."""

    member: torch.Tensor  # int64 [n]
    names: tuple[str, ...]  # G of them; target rows by id under round_robin

    def sums(self, rows: torch.Tensor, start: int, into: torch.Tensor) -> None:
        """Adds target rows [c, dim], the first of which is number `start`, to their groups' sums [G, dim]."""
        into.index_add_(0, self.member[start : start + len(rows)], rows.to(into.dtype))

    def means(self, sums: torch.Tensor) -> torch.Tensor:
        return sums / torch.bincount(self.member, minlength=len(self.names))[:, None]


def group_target(problem: SelectionProblem, aggregation: Aggregation) -> Groups:
    """Return the groups of target rows that an aggregation compares candidates with."""
    if problem.target is None:
        return Groups(torch.zeros(len(problem.candidates), dtype=torch.long), ("pool",))
    if aggregation is Aggregation.ROUND_ROBIN:
        return Groups(torch.arange(len(problem.target)), tuple(example.id for example in problem.target))
    if aggregation is Aggregation.MEAN:
        return Groups(torch.zeros(len(problem.target), dtype=torch.long), ("target",))
    names = sorted({example.subtask for example in problem.target})
    position = {name: i for i, name in enumerate(names)}
    return Groups(torch.tensor([position[e.subtask] for e in problem.target]), tuple(names))


def choose_by_similarity(
    similarity: torch.Tensor, problem: SelectionProblem, aggregation: Aggregation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen candidates int64 [M], best first, and scores float32 [N]: the similarity to the closest group.

    similarity: finite [G, N], the mean over each group's target rows.
    """
    scores = similarity.max(dim=0).values.float()
    if aggregation is Aggregation.ROUND_ROBIN and len(similarity) > 1:
        order = _round_robin(similarity, problem)
    else:
        order = rank(scores, problem)
    return problem.budget.take(order, problem.n_tokens), scores


def _round_robin(similarity: torch.Tensor, problem: SelectionProblem) -> torch.Tensor:
    """Groups take turns; as many candidates as the budget may need."""
    assert problem.target is not None
    turns = tie_order(problem.target, problem.seed).tolist()
    ties = tie_order(problem.candidates, problem.seed)
    left = similarity[:, ties].clone()  # a tie goes to the first, whatever the order of the pool
    wanted = problem.budget.rows(left.shape[1])
    order = torch.empty(left.shape[1] if wanted is None else wanted, dtype=torch.long)
    for turn in range(len(order)):
        best = int(left[turns[turn % len(turns)]].argmax())  # argmax gives the first of equals
        order[turn] = best
        left[:, best] = -torch.inf
    return ties[order]
