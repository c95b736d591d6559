"""Stored gradients of pool and target, read in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gtp_exp.data.examples import Example
from gtp_exp.errors import NothingToChoose
from gtp_exp.gradients.features import GradientFeatures, Rows
from gtp_exp.selection.atoms.sketches import require_directions
from gtp_exp.selection.base import SelectionProblem

CHUNK = 4096  # rows in memory at a time


def pool_and_target(
    problem: SelectionProblem, direction: str, target_direction: str, selector: str
) -> tuple[GradientFeatures, GradientFeatures, Sequence[Example]]:
    """Gradients of the pool and of the target, and the target's rows: in-domain those of the pool itself."""
    pool = problem.pool_gradients
    require_directions(pool, [direction], selector)
    assert pool is not None
    if problem.target is None:
        require_directions(pool, [target_direction], f"{selector}'s target side")
        return pool, pool, problem.candidates
    target = problem.target_gradients
    require_directions(target, [target_direction], f"{selector}'s target side")
    assert target is not None
    return pool, target, problem.target


def chunks_of(rows: Rows) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, rows as float32 [c, dim]) in order."""
    for start, chunk in rows.chunks(CHUNK):
        yield start, chunk.float()


def check_similar(similarity: torch.Tensor) -> None:
    """Raise NothingToChoose where no candidate is similar to the target at all, and chance would choose."""
    if not similarity.any():
        raise NothingToChoose(
            "no candidate's gradient has any similarity with the target's, so none can be preferred: those of"
            " the candidates or of the target are zero, or those of the target cancel out in their mean, or"
            " the two are at right angles; check how they were computed"
        )


def check_some(parts: Sequence[Rows], whose: str) -> None:
    """Raise NothingToChoose where all rows of all parts are zero, and chance would choose. whose: for the
    message."""
    if not any(bool(chunk.any()) for part in parts for _, chunk in part.chunks(CHUNK)):
        raise NothingToChoose(
            f"{whose} gradient is zero, so no row can be preferred; check how they were computed"
        )
