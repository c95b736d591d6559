"""Plan the store that a caller's own arrays become."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gtp_exp.data.hashing import digest
from gtp_exp.errors import UserError
from gtp_exp.gradients.arrays import (
    CHUNK,
    DIRECTIONS,
    ArrayRows,
    check_finite_rows,
    checked_ids,
    checked_rates,
)

SHARD_ROWS = 1024  # of a store that is written from arrays


@dataclass(frozen=True)
class ImportedArrays:
    """Hold arrays that have been checked, and the plan of the store that they become."""

    matrices: tuple[ArrayRows, ...]
    plan: dict[str, Any]
    rows: dict[str, Any]  # ids and token counts, which are 0: an array does not tell them
    direction: str

    def shard(self, checkpoint: int, span: range) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return (features, norms) by direction, float32, of these rows; zeros where the norm is not
        finite."""
        part = self.matrices[checkpoint].rows(torch.arange(span.start, span.stop)).float()
        norms = _norms(part)
        part[~torch.isfinite(norms)] = 0
        return {self.direction: part}, {self.direction: norms}


def imported_arrays(
    matrices: Sequence[ArrayRows],
    ids: Any,
    learning_rates: Any,
    direction: str,
    subtasks: Any = None,
    quarantine: bool = False,
) -> ImportedArrays:
    """Check the arrays of a store and plan it. matrices: one per checkpoint, of equal shapes.

    quarantine: whether rows that are not finite are kept apart, as in a store that is collected, or refused.
    Raise UserError for arrays that `gtp_exp.select` refuses, and where no row is left.
    """
    if direction not in DIRECTIONS:
        raise UserError(f"direction={direction!r} is not one of {', '.join(DIRECTIONS)}")
    n, dim = matrices[0].shape
    names = checked_ids(ids, n)
    rates = checked_rates(learning_rates, len(matrices))
    if not quarantine:
        check_finite_rows(matrices, names, "pool")
    content = _content(matrices)
    kinds = {matrix.dtype for matrix in matrices}
    storage = kinds.pop() if len(kinds) == 1 else torch.float32
    groups = None if subtasks is None else checked_subtasks(subtasks, n)
    plan = {
        "imported": True,
        "checkpoints": [{"step": t, "learning_rate": rate} for t, rate in enumerate(rates)],
        "rows": n,
        "content_sha256": content,
        "rows_sha256": digest(names, groups),
        "directions": [direction],
        "sketch": {"kind": "none", "dim": dim, "nonzeros": 1},
        "dim": dim,
        "n_parameters": dim,
        "seed": 0,
        "reduction": "unknown",
        "engine": "imported",
        "storage": str(storage).removeprefix("torch."),
        "shard_rows": SHARD_ROWS,
    }
    rows: dict[str, Any] = {"ids": names, "n_completion_tokens": [0] * n}
    if groups is not None:
        rows["subtasks"] = groups
    return ImportedArrays(tuple(matrices), plan, rows, direction)


def checked_subtasks(subtasks: Any, n: int) -> list[str]:
    """Return the group of each of n rows as texts; raise UserError where there are more or fewer."""
    names = [] if isinstance(subtasks, str) else [str(name) for name in subtasks]
    if len(names) != n:
        raise UserError(f"subtasks has the length {len(names)}, not {n}; give one for each row of the target")
    return names


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """Return the norm of every row in float32, which may overflow where all its numbers are finite."""
    return torch.linalg.vector_norm(rows, dim=1)


def _content(matrices: Sequence[ArrayRows]) -> str:
    """Return the SHA-256 (hex) of all numbers. Raise UserError where the norm of not one row is finite
    throughout."""
    hasher, finite = hashlib.sha256(), torch.ones(matrices[0].shape[0], dtype=torch.bool)
    for matrix in matrices:
        for start, chunk in matrix.chunks(CHUNK):
            hasher.update(chunk.contiguous().view(torch.uint8).numpy().data)
            finite[start : start + len(chunk)] &= _norms(chunk.float()).isfinite()
    if not finite.any():
        raise UserError(f"none of the {len(finite)} rows is finite; check how the gradients were made")
    return hasher.hexdigest()
