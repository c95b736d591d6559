"""Find exact copies once, before any pursuit, and near copies among the rows that a pursuit looks at.

Identical columns tie in every correlation, and a ridge gives them exactly equal weights, so a pursuit that
sees both keeps both. Near copies among all N rows would take N^2 products; a pursuit only ever holds a few
thousand candidate rows, and their Gram matrix finds the near copies that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gtp_exp.gradients.features import Rows
from gtp_exp.selection.atoms.threads import in_threads

HASH_BLOCK = 64  # rows hashed at a time: their int64 copy stays in the cache
COMPARE_BLOCK = 1024


@dataclass(frozen=True)
class Copies:
    """Hold which rows are exact copies of which."""

    representative: torch.Tensor  # int64 [N], the lowest index among the exact copies of a row
    multiplicity: torch.Tensor  # int64 [N], how many copies a representative stands for; 0 for the others

    @property
    def collapsed(self) -> int:
        """How many rows a representative stands for, itself not counted."""
        return int((self.multiplicity == 0).sum())


def row_hash(rows: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a 64-bit multilinear hash of each row's bits, int64 [n]; equal rows hash equal, -0 as 0.

    Rows are read in words of eight bytes, whose halves are mixed first: a product keeps of a word's high bits
    only as many bits as lie above them.
    """
    hashes = torch.empty(len(rows), dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    multipliers = torch.randint(-(2**62), 2**62, _words(rows[:1]).shape[1:], generator=generator) * 2 + 1

    def share(span: range) -> None:
        for start in range(span.start, span.stop, HASH_BLOCK):
            stop = min(start + HASH_BLOCK, span.stop)
            words = _words(rows[start:stop] + 0.0)  # -0.0 + 0.0 is 0.0
            if words.dtype == torch.int64:
                words = (words >> 32).bitwise_xor_(words)
            torch.mv(words.long(), multipliers, out=hashes[start:stop])

    in_threads(share, len(rows), HASH_BLOCK)
    return hashes


def _words(rows: torch.Tensor) -> torch.Tensor:
    """Return the bits of rows [n, d] in words as wide as divide a row, of two to eight bytes."""
    words = rows.contiguous().view(torch.int16)
    for wider in (torch.int32, torch.int64):
        words = words.view(wider) if words.shape[1] % 2 == 0 else words
    return words


def exact_copies(features: Sequence[Rows], hashes: torch.Tensor) -> Copies:
    """Group rows whose stored sketches are equal at every checkpoint.

    hashes int64 [N] proposes, a comparison of the rows themselves decides, so a hash collision costs nothing.
    """
    n = len(hashes)
    representative = torch.arange(n)
    order = hashes.sort(stable=True).indices  # equal hashes keep the order of their indices
    new_group = torch.ones(n, dtype=torch.bool)
    new_group[1:] = hashes[order][1:] != hashes[order][:-1]
    first = order[
        new_group.nonzero().flatten()[new_group.cumsum(0) - 1]
    ]  # group's lowest index, per position
    copy, original = order[~new_group], first[~new_group]
    for start in range(0, len(copy), COMPARE_BLOCK):
        left, right = copy[start : start + COMPARE_BLOCK], original[start : start + COMPARE_BLOCK]
        same = torch.ones(len(left), dtype=torch.bool)
        for rows in features:
            same &= (rows.rows(left) == rows.rows(right)).all(1)
        representative[left[same]] = right[same]
    multiplicity = torch.bincount(representative, minlength=n)
    return Copies(representative, multiplicity)


def no_copies(n: int) -> Copies:
    """Let each of n rows stand for itself, whatever it equals."""
    return Copies(torch.arange(n), torch.ones(n, dtype=torch.int64))


def near_copies(gram: torch.Tensor, threshold: float, kept: int) -> torch.Tensor:
    """Tell which of the candidates repeat an earlier one: bool [k].

    gram [k, k] holds cosines. In order, a candidate whose cosine to a candidate kept before it is above the
    threshold is a near copy. The first `kept` are kept whatever their cosines.
    """
    close = gram > threshold
    near = torch.zeros(len(gram), dtype=torch.bool)
    # Only rows with an earlier close row can be near copies, and these are few.
    suspects = close.tril(-1).any(1)
    suspects[:kept] = False
    for i in suspects.nonzero().flatten().tolist():
        near[i] = bool((close[i, :i] & ~near[:i]).any())
    return near
