"""Check the option `gradients=given`: stores that are there already, in place of a warm-up and a collection.

Imports no torch, so that a store that is not there, or does not fit, is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.manifest import check_same_space, read_manifest
from gtp_exp.paths import at_home

NAME = "gtp_exp.gradients.given.GivenGradients"


@dataclass(frozen=True)
class GivenGradients:
    """Names the gradient stores that selectors read: made by gtp-exp-store import, GradientStore.from_arrays,
    or another job."""

    pool: str  # folder of the store with the candidates' gradients
    target: Optional[str] = None  # and of the target's; null where the pool itself is the target
    max_quarantined_share: float = 0.01  # rows that are not finite are left out, above it the job fails

    remedy = "make the store again without them, or raise that share"  # of rows that are not finite

    def __post_init__(self) -> None:
        check_fields(self, "gradients")
        if not 0 <= self.max_quarantined_share < 1:
            raise UserError(
                f"gradients.max_quarantined_share={self.max_quarantined_share} must lie in [0, 1); "
                "0.01 is usual"
            )

    def folder(self, split: str) -> Path:
        """Return the folder of a store. split: pool or target."""
        return at_home(getattr(self, split))

    @cached_property
    def manifests(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the records of the stores by split; raise UserError for what is no store."""
        found = {}
        for split in ("pool", "target"):
            if getattr(self, split) is not None:
                try:
                    found[split] = read_manifest(self.folder(split))
                except UserError as error:
                    raise UserError(f"gradients.{split}: {error}") from error
        return found

    @property
    def checkpoints(self) -> int:
        """How many checkpoints the stores have."""
        return len(self.manifests["pool"]["checkpoints"])

    def check(self, direction: str | None, target_direction: str | None) -> None:
        """Look at the stores' records. Raise UserError where pool and target do not agree, or lack what a
        selector reads.

        direction, target_direction: those that the selector reads; None for one that does not say. Without a
        direction of its own, the target is read in the pool's.
        """
        if "target" in self.manifests:
            try:
                check_same_space(self.manifests["pool"], self.manifests["target"])
            except UserError as error:
                raise UserError(
                    f"gradients.pool={self.pool} and gradients.target={self.target}: {error}"
                ) from error
        asked = {"pool": ("direction", direction), "target": ("target_direction", target_direction)}
        if target_direction is None:
            asked["target"] = asked["pool"]
        for split, about in self.manifests.items():
            option, wanted = asked[split]
            held = about["directions"]
            if wanted is not None and wanted not in held:
                raise UserError(
                    f"gradients.{split}={getattr(self, split)} holds the direction {', '.join(held)}, not "
                    f"selector.{option}={wanted}; set selector.{option}={held[0]}, or give a store "
                    f"of {wanted}"
                )
