"""Say which key was meant where an override names none.

Hydra advises to append such a key to the configuration, which no part of it would read.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

FEW = 3  # options that are named
_apply = ConfigLoaderImpl._apply_overrides_to_config


def name_unknown_keys(conf: Path) -> None:
    """Make Hydra's compositions in this process tell unknown keys in our words. conf: the groups' folder."""
    apply = functools.partial(_apply_named, conf)
    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(apply)


def _apply_named(conf: Path, overrides: Sequence[Override], config: DictConfig) -> None:
    for override in overrides:
        message = unknown_key(override, config, conf)  # before Hydra has changed anything
        try:
            _apply([override], config)
        except (ConfigCompositionException, TypeError):
            if message is None:
                raise
            raise ConfigCompositionException(message) from None


def unknown_key(override: Override, config: DictConfig, conf: Path) -> str | None:
    """Return what is wrong with the key of an override that changes a value, or None if it is there.

    conf: the folder of the groups, whose other options may have the key.
    """
    if override.is_add() or override.is_force_add() or override.is_delete():
        return None
    # As written: what interpolations name need not be there yet.
    parent, node = "", OmegaConf.to_container(config, resolve=False)
    for name in override.key_or_group.split("."):
        if not isinstance(node, dict) or name not in node:
            break
        parent, node = f"{parent}{name}.", node[name]
    else:
        return None
    owner = parent.rstrip(".") or "the job"
    if not isinstance(node, dict):
        return f"{parent}{name} is unknown; {owner} is {node!r}"
    known = [str(key) for key in node if key != "hydra" and not str(key).startswith("_")]
    near, group = difflib.get_close_matches(name, known, n=1), owner.replace(".", "/")
    meant = f"did you mean {parent}{near[0]}? " if near else ""
    if options := options_with(conf / group, name):
        meant = f"it is a key of {', '.join(f'{group}={option}' for option in options[:FEW])}; "
    return f"{parent}{name} is unknown; {meant}{owner} has {', '.join(known) or 'no keys'}"


def options_with(group: Path, key: str) -> list[str]:
    """Return which options in a group's folder, if it is one, have a key of their own."""
    line = re.compile(rf"^{re.escape(key)}:", re.MULTILINE)
    return sorted(path.stem for path in group.glob("*.yaml") if line.search(path.read_text(encoding="utf-8")))
