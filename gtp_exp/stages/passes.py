"""Keep passes of the model over the pool, which selections at other budgets or by other selectors read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gtp_exp.cache import Cache, StageResult
from gtp_exp.files import read_json, write_json
from gtp_exp.stages.runner import LIBRARIES, VERSIONS


class KeptPasses:
    """Keeps a selector's passes of the model over the pool, which other budgets and selectors read too."""

    def __init__(self, cache_root: Path, model_identity: Mapping[str, Any], directory: Path) -> None:
        """Keep the passes of one model in the cache.

        directory: of the selection that makes them; an interrupted one notes there what it has made.
        """
        self.cache = Cache(cache_root)  # of one process: only the main one selects
        self.model_identity, self.directory = model_identity, directory
        self.saved_seconds = 0.0  # what the passes have cost that another selection made
        self._notes = directory / "passes_made.json"

    def __call__(
        self, what: str, reads: Mapping[str, Any], compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Return what `compute` returns, or what it returned earlier for the same model and reads."""

        def produce(directory: Path) -> None:
            save_file({"values": compute().contiguous()}, directory / "values.safetensors")

        reads = {"what": what, "model": self.model_identity, "libraries": LIBRARIES, **reads}
        result = self.cache.stage("pass", VERSIONS["pass"], reads, produce, label=f"{what} pass")
        made_here = read_json(self._notes) or []
        if not result.cached:
            write_json(self._notes, [*made_here, result.key])
        elif result.key not in made_here:  # else its seconds are among those that the selection has spent
            self.saved_seconds += result.seconds
        return load_file(result.directory / "values.safetensors")["values"]

    def finish(self) -> None:
        """Write the saved seconds beside the selection, and remove the notes on what it made."""
        self._notes.unlink(missing_ok=True)
        (self.directory / "passes.json").write_text(json.dumps({"saved_seconds": self.saved_seconds}))


def read_saved_seconds(selected: StageResult) -> float:
    """Return what the selection would have cost more without passes of the model that others had made."""
    return json.loads((selected.directory / "passes.json").read_text())["saved_seconds"]
