"""Find target rows that say nearly the same, which must not be on both sides of a fold: templated rows, of
which one would tell what the other holds out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gtp_exp.data.examples import Example
from gtp_exp.data.links import linked_groups
from gtp_exp.data.questions import drawn_groups

CHUNK = 1024  # rows compared with all at a time


def alike_rows(
    examples: Sequence[Example], rows: torch.Tensor, near_copy_cosine: float | None
) -> list[list[int]]:
    """Return all rows in groups, ascending: alike are rows that ask the same, whatever case and punctuation,
    that have gradients rows [n, m] of a larger cosine, or that are linked through others.

    Rows without a prompt are compared by their gradients alone; None: by their questions alone.
    """
    asking = [i for i, example in enumerate(examples) if example.messages and example.prompt.strip()]
    groups = drawn_groups([examples[i] for i in asking], seed=0)
    pairs = [(asking[group[0]], asking[j]) for group in groups for j in group[1:]]
    if near_copy_cosine is not None:
        unit = torch.nn.functional.normalize(rows.float(), dim=1)
        for start in range(0, len(unit), CHUNK):
            close = unit[start : start + CHUNK] @ unit.T > near_copy_cosine
            pairs += [(start + i, j) for i, j in close.nonzero().tolist() if start + i < j]
    return linked_groups(len(examples), pairs)
