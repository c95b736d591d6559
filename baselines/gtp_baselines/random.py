"""Uniform choice without replacement: the opponent that every selector has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_exp.selection.base import Need, Selection, SelectionProblem, unit_weights


@dataclass(frozen=True)
class Random:
    needs: ClassVar[frozenset[Need]] = frozenset()
    version: ClassVar[int] = 1

    def select(self, problem: SelectionProblem) -> Selection:
        n = len(problem.candidates)
        generator = torch.Generator().manual_seed(problem.seed)
        chosen = problem.budget.take(torch.randperm(n, generator=generator), problem.n_tokens)
        return Selection(chosen, unit_weights(len(chosen)), torch.zeros(n))
