"""Say which key was meant where an override names none.

Hydra advises to append such a key to the configuration, which no part of it would read.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

_apply = ConfigLoaderImpl._apply_overrides_to_config


def name_unknown_keys() -> None:
    """Make Hydra's compositions in this process tell unknown keys in our words."""
    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_apply_named)  # type: ignore[method-assign]


def _apply_named(overrides: Sequence[Override], config: DictConfig) -> None:
    for override in overrides:
        message = unknown_key(override, config)  # before Hydra has changed anything
        try:
            _apply([override], config)
        except (ConfigCompositionException, TypeError):
            if message is None:
                raise
            raise ConfigCompositionException(message) from None


def unknown_key(override: Override, config: DictConfig) -> str | None:
    """Return what is wrong with the key of an override that changes a value, or None if it is there."""
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
    known = [str(key) for key in node if key != "hydra"]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {parent}{near[0]}? " if near else ""
    return f"{parent}{name} is unknown; {meant}{owner} has {', '.join(known) or 'no keys'}"
