"""Read an earlier run's resolved.yaml, which `--config-name resolved` composes, as a job like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gtp_exp.errors import UserError
from gtp_exp.records.renamed import with_present_names


def with_earlier_options(config: DictConfig, choices: Mapping[str, Any]) -> tuple[DictConfig, dict[str, Any]]:
    """Return a composed job under the present names of its classes, without what it says of an earlier run,
    and the option of every group: those of then, but for those that are chosen now.

    Any other job comes back as it is. Raises UserError for a `job` that no run has written.
    """
    if "job" not in config:
        return config, dict(choices)
    plain: Any = with_present_names(OmegaConf.to_container(config, resolve=True))
    earlier = plain.pop("job")
    if not isinstance(earlier, Mapping) or not isinstance(earlier.get("names"), Mapping):
        raise UserError("job is what a run writes of itself into its resolved.yaml; give no such key")
    return DictConfig(plain), {**earlier["names"], **choices}
