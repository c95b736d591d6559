"""Make the features of a batch from per-example gradients that arrive parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gtp_exp.gradients.checkpoints import Moments
from gtp_exp.gradients.directions import Direction, apply_direction
from gtp_exp.gradients.sketch import Projection


@dataclass(frozen=True)
class Transform:
    """Says what happens to a gradient at one checkpoint: x = S Gamma(g), for each direction Gamma."""

    directions: Sequence[Direction]
    projection: Projection
    moments: Mapping[str, Moments]  # empty when every direction is sgd
    step: int
    betas: tuple[float, float]
    eps: float
    shapes: Mapping[str, torch.Size]  # of every trainable parameter


class Accumulator:
    """Sums up the features of a batch of b examples. Gradients are used up as they arrive, one parameter at a
    time, so that the gradient of the whole model is never held for a whole batch.
    """

    def __init__(self, transform: Transform, rows: int) -> None:
        self._transform, self._rows = transform, rows
        self._sketches = {d: transform.projection.empty(rows) for d in transform.directions}
        self._squares = {d: torch.zeros(rows, device=s.device) for d, s in self._sketches.items()}
        self._left = dict(transform.shapes)

    def add(self, name: str, gradients: torch.Tensor) -> None:
        """Take in the gradients of one parameter, [b, *shape] in any floating type; they are not kept.

        Every parameter comes once, with its whole gradient: Adam's directions are not linear in it.
        """
        shape = self._left.pop(name, None)
        if shape is None or gradients.shape != (self._rows, *shape):
            raise RuntimeError(
                f"{name}: gradient of shape {tuple(gradients.shape)} came twice or does not fit"
            )
        transform = self._transform
        flat = gradients.reshape(self._rows, -1).float()
        for direction in transform.directions:
            value = flat
            if direction is not Direction.SGD:
                moments = transform.moments[name]
                value = apply_direction(
                    direction,
                    flat,
                    moments.exp_avg.view(-1),
                    moments.exp_avg_sq.view(-1),
                    step=transform.step,
                    betas=transform.betas,
                    eps=transform.eps,
                )
            self._squares[direction] += torch.linalg.vector_norm(value, dim=1).square_()
            transform.projection.add(name, value, self._sketches[direction])

    def finish(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return (features [b, dim], norms [b]) by direction, float32."""
        # A layer that the model did not run has gradient zero, which Adam still turns into a step.
        for name, shape in list(self._left.items()):
            device = next(iter(self._sketches.values())).device
            self.add(name, torch.zeros(self._rows, *shape, device=device))
        features = {d.value: self._transform.projection.finish(s) for d, s in self._sketches.items()}
        return features, {d.value: s.sqrt() for d, s in self._squares.items()}
