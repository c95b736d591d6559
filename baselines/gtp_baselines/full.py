"""All candidates, in pool order, whatever the budget: what selection is measured against from above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_exp.selection.base import Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class Full(Selector):
    """Choose every candidate."""

    ignores_budget: ClassVar[bool] = True

    def select(self, problem: SelectionProblem) -> Selection:
        n = len(problem.candidates)
        return Selection(torch.arange(n), unit_weights(n), torch.zeros(n), {"ignores_budget": True})
