"""The configuration of an option as Hydra composes it, with what it inherits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def option(group: str, name: str) -> dict[str, Any]:
    """A fresh copy of the group's node."""
    return OmegaConf.to_container(_composed(group, name), resolve=True)  # type: ignore[return-value]


@cache
def _composed(group: str, name: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"{group}={name}"])[group]
