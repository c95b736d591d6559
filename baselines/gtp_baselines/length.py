"""Longest completions: Long Is More for Alignment (Zhao et al., arXiv 2402.04833).

The rows whose answers have the most tokens, whatever the target. Official code:
github.com/tml-epfl/long-is-more-for-alignment (it publishes the 1,000 longest rows of two data sets). Ours:
tokens are those of the model being tuned, after truncation, and of all assistant turns of a conversation;
equal lengths fall by the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

from gtp_baselines.ranking import rank
from gtp_exp.selection.base import Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class Length(Selector):
    """Choose the rows with the longest answers."""

    def select(self, problem: SelectionProblem) -> Selection:
        scores = problem.n_completion_tokens.float()
        chosen = problem.budget.take(rank(scores, problem), problem.n_tokens)
        return Selection(chosen, unit_weights(len(chosen)), scores)
