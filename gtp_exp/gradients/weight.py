"""Name the weights that the end of turn can have in the gradients of target rows. Imports no torch."""

from __future__ import annotations

from enum import Enum


class Balance(Enum):
    """Name the weight that is no number."""

    BALANCED = "balanced"  # content and end of turn have equal shares in the target's mean


Weight = float | Balance
