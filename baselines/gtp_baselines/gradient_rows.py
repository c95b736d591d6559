"""Stored gradients, read in chunks and refused where they are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gtp_exp.data.examples import Example
from gtp_exp.errors import UserError
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


def finite_chunks(rows: Rows, examples: Sequence[Example]) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows as float32 [c, dim]) in order; UserError with the id of a row that is not finite."""
    for start, chunk in rows.chunks(CHUNK):
        chunk = chunk.float()
        finite = torch.isfinite(chunk).all(1)
        if not finite.all():
            bad = examples[start + int((~finite).nonzero()[0])].id
            raise UserError(
                f"the gradient of example '{bad}' is not finite; remove the row or set model.precision=fp32"
            )
        yield start, chunk
