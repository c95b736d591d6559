"""The gradients group of the config: how the trajectory is made and what is kept of each gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from gtp_exp.config import describe
from gtp_exp.errors import UserError
from gtp_exp.gradients.choose import Engine
from gtp_exp.gradients.loss import Reduction
from gtp_exp.gradients.optimizer import Direction
from gtp_exp.gradients.project import Sketch
from gtp_exp.gradients.store import StorageType
from gtp_exp.training import TrainConfig


@dataclass(frozen=True)
class GradientConfig:
    seed: int  # of the warm-up subset, the LoRA start and the sketches
    warmup_share: float  # of the candidates
    warmup: TrainConfig  # every epoch ends in a checkpoint of the trajectory
    directions: list[Direction]  # each is stored, from the same backward pass
    sketch: Sketch
    reduction: Reduction
    storage: StorageType
    engine: Engine
    shard_rows: int
    token_budget: Optional[int]  # tokens per forward pass; null chooses by free memory
    max_quarantined_share: (
        float  # of a split's rows, whose gradient may be NaN or infinite; they are left out
    )

    def __post_init__(self) -> None:
        if not 0 < self.warmup_share <= 1:
            raise UserError(f"gradients.warmup_share={self.warmup_share} must lie in (0, 1]; 0.05 is usual")
        if not 0 <= self.max_quarantined_share < 1:
            raise UserError(
                f"gradients.max_quarantined_share={self.max_quarantined_share} must lie in [0, 1); "
                "0.01 is usual"
            )
        if not self.directions:
            raise UserError("gradients.directions is empty; name at least one of sgd, adam, less")
        if self.warmup.use_weights:
            raise UserError("gradients.warmup.use_weights=true: no selection has given the warm-up weights")

    def reads(self) -> dict[str, Any]:
        """The part that changes the stored numbers, for the cache key."""
        settings = describe(self)
        for name in ("warmup", "warmup_share", "token_budget", "max_quarantined_share"):
            del settings[name]
        return settings
