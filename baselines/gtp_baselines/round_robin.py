"""LESS gradients chosen in turns: A Critical Look at Targeted Instruction Selection (arXiv 2602.14696).

The influence of candidate i on target row j is that of LESS, with u(x) = x / |x| and eta_t the mean learning
rate of checkpoint t:

    s[j, i] = sum_t  eta_t / sum eta  <u(Gamma_t(g[t, i])), u(g[t, j])>

Target rows take turns, and each takes the candidate of its largest s that is left. Where LESS
ranks by a subtask's mean, so that one kind of row may take the whole budget, here every target row is served.

Official code: github.com/dcml-lab/targeted-instruction-selection at commit c1dc028; the turns follow
selection/round_robin.py, the influence representation/less/compute_less_similarity.py. It puts a loss on the
end of turn of target rows (common/data.py), unlike LESS, and lets rows take turns in the order of their file.
Ours: turns in an order drawn by the seed, sketches of the gradients group, ties that fall by a hash of the
text instead of the order of the pool, a budget of tokens, and in-domain, where no row can take turns with
itself, the ranking by the mean similarity to the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gtp_baselines.aggregation import Aggregation, choose_by_similarity, group_target
from gtp_baselines.less import influence
from gtp_exp.decode import check_fields
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class RoundRobin(Selector):
    """Let the target rows take turns, each taking the row of largest influence on it that is left."""

    direction: str = "less"  # of the candidates
    target_direction: str = "sgd"
    target_end_of_turn: Weight = 1.0

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_fields(self, "selector")

    def select(self, problem: SelectionProblem) -> Selection:
        groups = group_target(problem, Aggregation.ROUND_ROBIN)
        similarity = influence(problem, groups, self.direction, self.target_direction, "round_robin")
        chosen, scores = choose_by_similarity(similarity, problem, Aggregation.ROUND_ROBIN)
        return Selection(chosen, unit_weights(len(chosen)), scores, {"groups": len(groups.names)})
