"""The settings of the search, as `hydra.sweeper` holds them.

They stand in a file that Hydra does not load by itself, because it would load it twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from hydra.core.config_store import ConfigStore

from gtp_exp.errors import UserError


class Sampler(Enum):
    """How Optuna chooses what is tried next."""

    tpe = "tpe"
    random = "random"
    cmaes = "cmaes"


class Direction(Enum):
    """Which values of a job are better."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass
class Settings:
    """The settings below `hydra.sweeper`.

    params: the search space, as overrides of Hydra: `interval(a, b)`, `range(a, b)`, `choice(a, b)`, the
        first two also as `tag(log, ...)`; swept values of the command line go before them.
    n_trials: all trials of the search, failed ones and those of an interrupted run among them.
    n_jobs: trials that the launcher is given at once.
    storage: a file in the sweep's folder from which the same command goes on; null: in memory.
    max_failure_rate: the share of n_trials that may fail before the search ends with an error.
    """

    _target_: str = "hydra_plugins.gtp_optuna.optuna_sweeper.OptunaSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    direction: Direction = Direction.minimize
    n_trials: int = 20
    n_jobs: int = 1
    sampler: Sampler = Sampler.tpe
    seed: int = 0
    storage: Optional[str] = "optuna.db"
    max_failure_rate: float = 0.3

    def __post_init__(self) -> None:
        for name in ("n_trials", "n_jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"hydra.sweeper.{name}={getattr(self, name)} must be 1 or more")
        if self.seed < 0:
            raise UserError(f"hydra.sweeper.seed={self.seed} must be 0 or more")
        if not 0 <= self.max_failure_rate <= 1:
            raise UserError(f"hydra.sweeper.max_failure_rate={self.max_failure_rate} must be from 0 to 1")
        if self.storage is not None and (self.storage in ("", ".", "..") or "/" in self.storage):
            raise UserError(
                f"hydra.sweeper.storage={self.storage} must name a file in the sweep's folder, or be null"
            )


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=Settings, provider="gtp_exp")
