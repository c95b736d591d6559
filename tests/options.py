"""The configuration of an option as Hydra composes it, with what it inherits."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

CONF = Path(__file__).resolve().parents[1] / "conf"
WHOLE = ("experiment", "debug", "hparams_search")  # groups that change the whole composition

# A person has to fill these in; an option without it is refused.
REQUIRED = {
    ("dataset", "jsonl"): ["dataset.files=[pool.jsonl]"],
    ("dataset", "hub"): ["dataset.hub_id=owner/name"],
    ("selector", "given"): ["selector.file=ids.txt"],
    ("gradients", "given"): ["gradients.pool=stores/pool"],
    ("model", "hub"): ["model.name_or_path=owner/name"],
    ("benchmark", "lm_eval"): ["benchmark.names=[arc_easy]"],
    ("benchmark", "jsonl"): ["benchmark.target=mine.jsonl"],
    ("benchmark", "jsonl_choice"): ["benchmark.validation=v.jsonl", "benchmark.test=t.jsonl"],
}


def names(group: str) -> list[str]:
    """Return the options of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def option(group: str, name: str, *overrides: str) -> dict[str, Any]:
    """Return a fresh copy of the group's node."""
    return copy.deepcopy(_node(group, name, *overrides))


@cache
def _node(group: str, name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:  # alone, in a tenth of the time, if it asks for nothing of other groups
            return OmegaConf.to_container(compose(f"{group}/{name}", list(overrides))[group], resolve=True)
        except InterpolationKeyError:
            pass
    return whole(f"{group}={name}", *overrides)[group]


def whole(*overrides: str) -> Any:
    """Return the whole configuration, which Hydra needs a tenth of a second for."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
