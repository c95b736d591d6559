"""Find or make the cache entries of stages, and keep account of what they cost."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gtp_exp.cache import Cache, StageResult
from gtp_exp.distributed import Processes
from gtp_exp.gradients.collect import VERSION as GRADIENTS_VERSION
from gtp_exp.records.record import StageCost
from gtp_exp.tracking import Journal

# Raise a stage's version when the same inputs give another result: old cache entries are then passed over.
VERSIONS = {
    "warmup": 6,
    "gradients": GRADIENTS_VERSION,
    "pass": 2,
    "selection": 2,
    "finetune": 6,
    "evaluation": 9,
    "validation": 1,
}

# Another release of these may give other numbers too.
LIBRARIES = {
    name: importlib.metadata.version(name)
    for name in ("torch", "transformers", "peft", "accelerate", "lm-eval", "numpy")
}


@dataclass
class StageRunner:
    """Finds or makes cached stages, and keeps account of what they cost."""

    cache: Cache
    journal: Journal
    costs: dict[str, StageCost] = field(default_factory=dict)  # by the stage's name in results.json

    @property
    def processes(self) -> Processes:
        """Return the processes that run the job together."""
        return self.cache.processes

    def run_stage(
        self,
        stage: str,
        reads: Mapping[str, Any],
        produce: Callable[[Path], None],
        cost: str = "",
        together: bool = True,
    ) -> StageResult:
        """Return a stage's cache entry; `produce(directory)` makes it where there is none.

        cost: the name under which its seconds are added up, by default the stage's own. together: whether
        every process takes part in `produce`; else the main one does it alone.
        """
        cost = cost or stage
        reads = {**reads, "libraries": LIBRARIES}
        result = self.cache.stage(stage, VERSIONS[stage], reads, produce, label=cost, together=together)
        before = self.costs.get(cost, StageCost("", 0.0, True, 0.0))
        self.costs[cost] = StageCost(
            key=f"{before.key} {result.key}".strip(),
            seconds=before.seconds + result.seconds,
            cached=before.cached and result.cached,
            spent=before.spent_here + (0.0 if result.cached else result.seconds),
        )
        told = {"stage": cost, "key": result.key, "seconds": result.seconds, "cached": result.cached}
        self.journal.event("stage", told)  # gtp-exp-cache reads there what a job uses before its end
        return result

    def note(self, cost: str, key: str) -> None:
        """Name something that was there, and cost nothing, among what the job was made from."""
        self.costs[cost] = StageCost(key, 0.0, cached=True, spent=0.0)

    def add_seconds(self, cost: str, seconds: float) -> None:
        """Count further seconds as part of a stage's cost."""
        self.costs[cost] = replace(self.costs[cost], seconds=self.costs[cost].seconds + seconds)
