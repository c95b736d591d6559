"""The candidates that each target row likes best, in order."""

from __future__ import annotations

import torch


def best_rows(similarity: torch.Tensor, ties: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places in `ties`, int64 [n, depth], and their similarities [n, depth], largest first.

    similarity: [n, N]. ties: the candidates, int64 [N], in the order in which equals follow one another.
    One row is sorted at a time, so that memory is that of the answer.
    """
    places = torch.empty(len(similarity), depth, dtype=torch.long)
    values = similarity.new_empty(len(similarity), depth)
    for j, row in enumerate(similarity):
        ordered = row[ties].sort(descending=True, stable=True)
        places[j], values[j] = ordered.indices[:depth], ordered.values[:depth]
    return places, values
