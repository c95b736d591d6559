"""Scale gradients to unit length, so that only their directions are compared."""

from __future__ import annotations

import torch

# Shorter rows count as nearly zero. PyTorch's own bound is 1e-12, and the gradient of an answer that a model
# is sure of can be shorter: its cosines with other rows would come out too small.
SHORTEST = 1e-30


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [n, d] at unit norm; a row of zeros stays zero."""
    return torch.nn.functional.normalize(rows, dim=1, eps=SHORTEST)
