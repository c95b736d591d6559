"""Find target rows that say nearly the same, which must not be on both sides of a fold: templated rows, of
which one would tell what the other holds out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from gtp_exp.data.examples import Example
from gtp_exp.data.links import linked_groups
from gtp_exp.data.questions import drawn_groups
from gtp_exp.gradients.unit import unit_rows

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
    same = ((asking[group[0]], asking[j]) for group in groups for j in group[1:])
    close = iter(()) if near_copy_cosine is None else _links(rows, near_copy_cosine)
    return linked_groups(len(examples), chain(same, close))


def _links(rows: torch.Tensor, cosine: float) -> Iterator[tuple[int, int]]:
    """Yield fewer pairs than there are rows, whose groups are those of all pairs of a larger cosine.

    All pairs of rows that are alike would fill the memory; one that joins no two groups is left out.
    """
    unit = unit_rows(rows.float())
    group = torch.arange(len(unit))
    for start in range(0, len(unit), CHUNK):
        close = (unit[start : start + CHUNK] @ unit[start:].T > cosine).triu(1)
        for k in close.any(1).nonzero().flatten().tolist():
            i, own = start + k, int(group[start + k])
            alike = start + close[k].nonzero().flatten()
            alike = alike[group[alike] != own]
            while len(alike):
                joined = group[alike[0]].clone()
                yield i, int(alike[0])
                group[group == joined] = own
                alike = alike[group[alike] != own]
