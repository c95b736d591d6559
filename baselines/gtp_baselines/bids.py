"""BIDS: Improving Influence-based Instruction Tuning Data Selection for Balanced Learning of Diverse
Capabilities (Dai et al., arXiv 2501.12147; Findings of EMNLP 2025).

The influence A[i, j] of candidate i on target row j is that of LESS (see less.py, every target row a group of
its own). Each target row's influences are standardised over the candidates; rows then join the choice T one
at a time, each the one that most exceeds what T has on average for some target row:

    B[i, j] = (A[i, j] - mean_i A[i, j]) / std_i A[i, j]
    next    = argmax over i not in T of  max_j ( B[i, j] - mean_{k in T} B[k, j] )

The mean over T does not depend on i, so the next row is the best one left for a single target row: every
target row's candidates are sorted once, and a step costs as much as there are target rows.

No official code was found, and of the paper only its beginning was at hand: the rule is its Algorithm 1 as
others have written it down. It leaves the mean over an empty T open; here it is 0. Subtasks play no part: the
paper gives each task equally many target rows, here they may differ. A target row on which all candidates
have the same influence is left out. In-domain the pool's mean is the one target row: the choice is a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_baselines.aggregation import Aggregation, group_target
from gtp_baselines.best_rows import best_rows
from gtp_baselines.less import influence
from gtp_baselines.ranking import tie_order
from gtp_exp.decode import check_fields
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class BIDS(Selector):
    """Choose in turn the row that helps the target row which the choice so far serves least."""

    direction: str = "less"  # of the candidates
    target_direction: str = "sgd"
    target_end_of_turn: Weight = 0.0  # as LESS, whose influence it is

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})

    def __post_init__(self) -> None:
        check_fields(self, "selector")

    def select(self, problem: SelectionProblem) -> Selection:
        groups = group_target(problem, Aggregation.ROUND_ROBIN)
        influences = influence(problem, groups, self.direction, self.target_direction, "BIDS")
        standardised = standardise(influences)
        n = len(problem.candidates)
        wanted = problem.budget.rows(n)
        order = balanced_order(
            standardised, tie_order(problem.candidates, problem.seed), n if wanted is None else wanted
        )
        chosen = problem.budget.take(order, problem.n_tokens)
        averages = standardised[:, chosen].double().mean(1)
        diagnostics = {
            "targets": len(standardised),
            "targets_left_out": len(groups.names) - len(standardised),
            "least_average_influence": float(averages.min()),  # in standard deviations over the pool
        }
        return Selection(chosen, unit_weights(len(chosen)), standardised.max(0).values, diagnostics)


def standardise(influences: torch.Tensor) -> torch.Tensor:
    """Return B^T float32 [<= n, N] of influences [n, N], in place, without rows that do not vary.

    Where none varies all stay, as zeros.
    """
    varies = torch.empty(len(influences), dtype=torch.bool)
    for j, row in enumerate(influences):
        centred = row.double() - row.double().mean()
        deviation = float(centred.square().mean().sqrt())
        varies[j] = deviation > 1e-7 * float(row.abs().max())  # float32 rounding is no variation
        influences[j] = centred / deviation if varies[j] else 0.0
    return influences if varies.all() or not varies.any() else influences[varies]


def balanced_order(standardised: torch.Tensor, ties: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first `size` rows of the choice, int64 [size], from B^T [n, N]; `ties` orders equals."""
    places, values = best_rows(standardised, ties, size)
    n, every = len(standardised), torch.arange(len(standardised))
    front = torch.zeros(n, dtype=torch.long)  # where each target row's best candidate left stands in its list
    sums = torch.zeros(n, dtype=torch.float64)  # of B over the choice
    taken = torch.zeros(standardised.shape[1], dtype=torch.bool)
    order = torch.empty(size, dtype=torch.long)
    for step in range(size):
        best = places[every, front]
        gain = values[every, front] - sums / max(step, 1)
        place = int(best[gain == gain.max()].min())  # the first of equals
        order[step] = ties[place]
        if step + 1 == size:
            break
        taken[place] = True
        sums += standardised[:, ties[place]]
        while (behind := taken[places[every, front]]).any():
            front += behind
    return order
