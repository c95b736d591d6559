"""Names that options have had: a record under one of them is read as one under the present name.

A value of `_target_` is looked up whole; the table is the only place that knows of earlier layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASSES = {
    "gtp_exp.models.ModelConfig": "gtp_exp.model.loading.ModelConfig",
    "gtp_exp.training.TrainConfig": "gtp_exp.training.config.TrainConfig",
    "gtp_exp.launch.Launch": "gtp_exp.launch.launcher.Launch",
    "gtp_exp.data.jsonl.Jsonl": "gtp_exp.data.sources.jsonl.Jsonl",
    "gtp_exp.data.hub.Hub": "gtp_exp.data.sources.hub.Hub",
    "gtp_exp.data.mixture.Mixture": "gtp_exp.data.sources.mixture.Mixture",
}
PACKAGES = {"baselines.": "gtp_baselines.", "benchmarks.": "gtp_benchmarks."}


def with_present_names(node: Any) -> Any:
    """Return a configuration node with every `_target_` in it under its present name."""
    if isinstance(node, Mapping):
        return {
            key: present_name(value) if key == "_target_" else with_present_names(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [with_present_names(item) for item in node]
    return node


def present_name(target: Any) -> Any:
    """Return the dotted name that a class has now; anything unknown comes back as it is."""
    if not isinstance(target, str):
        return target
    for old, new in PACKAGES.items():
        if target.startswith(old):
            return new + target.removeprefix(old)
    return CLASSES.get(target, target)
