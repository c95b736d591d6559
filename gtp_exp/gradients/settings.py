"""Check the gradients group of the config: how the trajectory is made, what is kept of each gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from gtp_exp.config import describe
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.shards import StorageType
from gtp_exp.gradients.sketch import Sketch
from gtp_exp.model.loss import Reduction
from gtp_exp.training.config import TrainConfig


@dataclass(frozen=True)
class GradientConfig:
    """Says how a trajectory of checkpoints is made, and how gradients along it are computed and stored."""

    seed: int = 0  # of the warm-up subset, the LoRA start and the sketches
    warmup_share: float = 0.05  # of the candidates
    # Every epoch of it ends in a checkpoint of the trajectory.
    warmup: TrainConfig = field(default_factory=TrainConfig)
    # Each is stored, from the same backward pass.
    directions: list[Direction] = field(
        default_factory=lambda: [Direction.SGD, Direction.ADAM, Direction.LESS]
    )
    sketch: Sketch = field(default_factory=Sketch)
    reduction: Reduction = Reduction.MEAN
    storage: StorageType = StorageType.FLOAT16
    engine: Engine = Engine.AUTO
    shard_rows: int = 1024
    token_budget: Optional[int] = None  # tokens per forward pass; null chooses by free memory
    # The share of a split's rows whose gradient may be NaN or infinite; they are left out.
    max_quarantined_share: float = 0.01
    untuned_checkpoint: bool = False  # the trajectory begins with the model as it is before the warm-up

    # Of rows that are not finite.
    remedy = "check their text, lower gradients.warmup.learning_rate, or set model.precision=fp32"

    def __post_init__(self) -> None:
        check_fields(self, "gradients")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"gradients.seed={self.seed} must lie between 0 and 4294967295")
        if not 0 < self.warmup_share <= 1:
            raise UserError(f"gradients.warmup_share={self.warmup_share} must lie in (0, 1]; 0.05 is usual")
        if not 0 <= self.max_quarantined_share < 1:
            raise UserError(
                f"gradients.max_quarantined_share={self.max_quarantined_share} must lie in [0, 1); "
                "0.01 is usual"
            )
        if not self.directions:
            raise UserError("gradients.directions is empty; name at least one of sgd, adam, less")
        directions = [direction.value for direction in self.directions]
        if len(set(directions)) != len(directions):
            raise UserError(
                f"gradients.directions={directions} must name each of sgd, adam, less at most once"
            )
        if self.shard_rows < 1:
            raise UserError(f"gradients.shard_rows={self.shard_rows} must be at least 1; 1024 is usual")
        if self.token_budget is not None and self.token_budget < 1:
            raise UserError(
                f"gradients.token_budget={self.token_budget} must be positive, or null, which chooses it by "
                "free memory"
            )
        moments = [d.value for d in self.directions if d is not Direction.SGD]
        if moments and not self.warmup.optimizer.has_moments:
            raise UserError(
                f"gradients.warmup.optimizer={self.warmup.optimizer.value} keeps no moments of every value, "
                f"which gradients.directions={moments} read; set gradients.directions=[sgd], or another "
                "optimizer of the warm-up"
            )
        if self.warmup.use_weights:
            raise UserError("gradients.warmup.use_weights=true: no selection has given the warm-up weights")
        if self.warmup.min_steps:
            raise UserError(
                f"gradients.warmup.min_steps={self.warmup.min_steps}: every epoch of the warm-up is a "
                "checkpoint, so their number must not depend on the rows; raise gradients.warmup.epochs"
            )

    def warmup_rows(self, n_candidates: int) -> int:
        """Return how many of the candidates the warm-up trains on."""
        return max(1, round(self.warmup_share * n_candidates))

    @property
    def checkpoints(self) -> int:
        """How many checkpoints the trajectory has."""
        return self.warmup.epochs + self.untuned_checkpoint

    def reads(self) -> dict[str, Any]:
        """Return the part that changes the stored numbers, for the cache key."""
        settings = describe(self)
        for name in ("warmup", "warmup_share", "token_budget", "max_quarantined_share", "untuned_checkpoint"):
            del settings[name]
        return settings
