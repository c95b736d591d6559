"""Uniform choice without replacement: the opponent that every selector has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gtp_exp.selection.base import Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class Random(Selector):
    """Choose uniformly at random, without replacement."""

    def select(self, problem: SelectionProblem) -> Selection:
        n = len(problem.candidates)
        generator = torch.Generator().manual_seed(problem.seed)
        chosen = problem.budget.take(torch.randperm(n, generator=generator), problem.n_tokens)
        return Selection(chosen, unit_weights(len(chosen)), torch.zeros(n))
