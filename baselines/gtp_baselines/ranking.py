"""From scores to a ranking in which the order of the pool plays no part.

Many scores tie (lengths, BM25 of rows without a shared word). A stable sort would then prefer the first
rows of the pool, that is, the first source of a mixture. Here ties fall by a hash of the text and the seed:
another seed breaks them differently, another order of the pool does not. Exact copies of a text keep the
pool's order. Where only gradients are given, by `gtp_exp.select` or a store, a row's id stands for its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain

import torch

from gtp_exp.data.examples import Example
from gtp_exp.selection.base import SelectionProblem


def text(example: Example) -> str:
    """The whole conversation as plain text, one turn a line, without roles; reasoning is a line of its own
    before its answer."""
    lines = (([m.reasoning] if m.reasoning else []) + [m.content] for m in example.messages)
    return "\n".join(chain.from_iterable(lines))


def tie_order(examples: Sequence[Example], seed: int) -> torch.Tensor:
    """The rows in the order of their texts' hashes, of their ids' where they have no text: int64 [n]."""
    salt = seed.to_bytes(16, "little", signed=True)
    texts = ["\n".join(m.content for m in e.messages) if e.messages else e.id for e in examples]
    hashes = [blake2b(one.encode(), digest_size=8, salt=salt).digest() for one in texts]
    return torch.tensor(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=torch.long)


def toward_middle(order: torch.Tensor) -> torch.Tensor:
    """Minus the distance of each row to the median's rank: float64 [N], larger is nearer.

    order: int64 [N], the rows from first to last. Of two rows as far from it the former comes first.
    """
    place = torch.empty(len(order), dtype=torch.float64)
    place[order] = torch.arange(len(order), dtype=torch.float64)
    return -((place - (len(order) - 1) / 2 + 0.25).abs())


def rank(scores: torch.Tensor, problem: SelectionProblem) -> torch.Tensor:
    """All candidates by scores [N], largest first: int64 [N]."""
    order = tie_order(problem.candidates, problem.seed)
    return order[torch.argsort(scores[order], descending=True, stable=True)]
