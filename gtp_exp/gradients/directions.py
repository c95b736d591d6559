"""Turn a gradient into the direction Adam would step in, example by example."""

from __future__ import annotations

from enum import Enum

import torch


class Direction(Enum):
    """Says what is stored of a gradient: itself, or the step that Adam would take."""

    SGD = "sgd"  # the gradient itself
    ADAM = "adam"  # textbook Adam with bias correction (Kingma & Ba, arXiv 1412.6980)
    # As published by LESS (Xia et al., arXiv 2402.04333): no bias correction, eps under the root.
    LESS = "less"


BETAS, EPS = (0.9, 0.999), 1e-8  # of the Adam that made the checkpoints: torch's defaults


def apply_direction(
    direction: Direction,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
) -> torch.Tensor:
    """Return Gamma(g), the direction of the step Adam would take next if `gradient` were its gradient.

    gradient: [b, p], one row per example, float32 and not modified. exp_avg, exp_avg_sq: [p], the state after
    `step` steps. Returns [b, p].

        m' = b1 m + (1 - b1) g        v' = b2 v + (1 - b2) g^2
        adam:  m' / (1 - b1^(step+1))  /  (sqrt(v' / (1 - b2^(step+1))) + eps)
        less:  m' / sqrt(v' + eps)
    """
    if direction is Direction.SGD:
        return gradient
    beta1, beta2 = betas
    # In place on two buffers: this runs on every gradient value, and memory traffic is its whole cost.
    numerator = torch.add(beta1 * exp_avg, gradient, alpha=1 - beta1)
    denominator = torch.addcmul(beta2 * exp_avg_sq, gradient, gradient, value=1 - beta2)
    if direction is Direction.LESS:
        return numerator.mul_(denominator.add_(eps).rsqrt_())
    correction1 = 1 - beta1 ** (step + 1)
    correction2 = 1 - beta2 ** (step + 1)
    return numerator.div_(denominator.div_(correction2).sqrt_().add_(eps)).div_(correction1)
