"""Names that options have had, and fields that records have not always had: older records are read, too.

A value of `_target_` is looked up whole; the table is the only place that knows of earlier layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASSES = {
    "gtp_exp.models.ModelConfig": "gtp_exp.model.loading.ModelConfig",
    "gtp_exp.training.TrainConfig": "gtp_exp.training.config.TrainConfig",
    "gtp_exp.launch.Launch": "gtp_exp.launch.launcher.Launch",
    "gtp_exp.tracking.WandbTracking": "gtp_exp.tracking.wandb.WandbTracking",
    "gtp_exp.data.jsonl.Jsonl": "gtp_exp.data.sources.jsonl.Jsonl",
    "gtp_exp.data.hub.Hub": "gtp_exp.data.sources.hub.Hub",
    "gtp_exp.data.mixture.Mixture": "gtp_exp.data.sources.mixture.Mixture",
}
# Fields that came later, with what they would have held in every record before.
ADDED_TO_RECORD = {"validation": None, "answers": None, "tests": {}, "training": None, "tracked_at": None}
ADDED_TO_SELECTION = {
    "n_cut": 0,
    "target_labels": 0,
    "labels_chosen": 0,
    "labels_entropy": None,
    "repeats": None,
    "read_beside_rows": {},
}
ADDED_TO_STAGE = {"spent": None}
ADDED_TO_ROW = {"tools": ""}
PACKAGES = {"baselines.": "gtp_baselines.", "benchmarks.": "gtp_benchmarks."}


# The options of GTP's solvers stood beside its own, with the solver's name among them.
GTP = "gtp_exp.selection.gtp.GTP"
SOLVERS = {
    "cosamp": ("cosamp.CoSaMP", ("candidates", "prune_stages", "max_iterations", "tolerance")),
    "omp": ("omp.OMP", ()),
    "block_omp": ("omp.BlockOMP", ("steps",)),
    "elastic_net": ("elastic_net.ElasticNet", ("candidates", "prune_stages", "max_iterations")),
}
SOLVER_OPTIONS = frozenset(option for _, options in SOLVERS.values() for option in options)


def with_present_names(node: Any) -> Any:
    """Return a configuration node with every class and option in it under its present name."""
    if isinstance(node, Mapping):
        renamed = {
            key: present_name(value) if key == "_target_" else with_present_names(value)
            for key, value in node.items()
        }
        flat = renamed.get("_target_") == GTP and isinstance(renamed.get("solver"), str)
        return _with_nested_solver(renamed) if flat else renamed
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


def _with_nested_solver(selector: Mapping[str, Any]) -> dict[str, Any]:
    """Return GTP's node with its solver as a node of its own, with the options that this solver reads."""
    name, options = SOLVERS.get(selector["solver"], (selector["solver"], ()))
    solver = {option: selector[option] for option in options if option in selector}
    rest = {key: value for key, value in selector.items() if key not in SOLVER_OPTIONS}
    return {**rest, "solver": {"_target_": f"gtp_exp.selection.solvers.{name}", **solver}}
