"""The jobs a command line stands for, composed by Hydra's own API: nothing is started, no folder made."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from gtp_exp.api.further_tests import compose_tests
from gtp_exp.errors import UserError


def compose_jobs(arguments: Sequence[str], conf_dir: str) -> list[dict[str, Any]]:
    """One {"config": resolved values, "names": group -> option} per job, in the order they would run.

    arguments: those of the command line. Raises what Hydra raises for a wrong one, and UserError for a
    sweeper whose jobs depend on earlier results.
    """
    asked = get_args_parser().parse_args(list(arguments))
    overrides = list(asked.overrides)
    if asked.config_dir is not None:
        overrides.append(f"hydra.searchpath=[file://{Path(asked.config_dir).resolve()}]")
    with initialize_config_dir(conf_dir, version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        name = asked.config_name or "config"
        master = loader.load_configuration(name, overrides, run_mode=RunMode.MULTIRUN)
        if not (asked.multirun or master.hydra.mode is RunMode.MULTIRUN):
            config, names = _without_hydra(loader.load_configuration(name, overrides, run_mode=RunMode.RUN))
            return [_job(config, names, master.hydra.runtime.config_sources)]
        if "BasicSweeper" not in master.hydra.sweeper._target_:
            raise UserError(
                f"{master.hydra.sweeper._target_} chooses its jobs as it goes; they cannot be told"
            )
        params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        tasks = list(master.hydra.overrides.task)
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *tasks])
        (combinations,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return _compose(loader, master, combinations)


def _compose(loader: Any, master: DictConfig, combinations: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Hydra needs a tenth of a second for a job, most of it to find and read the options of the groups: jobs
    that differ in plain values only are composed once."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = {
        line: parser.parse_override(line) for line in {line for lines in combinations for line in lines}
    }
    values = {line: override for line, override in parsed.items() if _is_value(override, loader)}
    composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
    jobs = []
    for lines in combinations:
        groups = tuple(line for line in lines if line not in values)
        if groups not in composed:
            composed[groups] = _without_hydra(loader.load_sweep_config(master, list(groups)))
        config, names = composed[groups]
        config = copy.deepcopy(config)
        ConfigLoaderImpl._apply_overrides_to_config(
            [values[line] for line in lines if line in values], config
        )
        jobs.append(_job(config, names, master.hydra.runtime.config_sources))
    return jobs


def _job(config: DictConfig, names: dict[str, str], sources: Any) -> dict[str, Any]:
    """Return one composed job, with its further tests."""
    compose_tests(config, str(names.get("benchmark")), sources)
    return {"config": OmegaConf.to_container(config, resolve=True), "names": names}


def _is_value(override: Override, loader: Any) -> bool:
    """Whether it sets a key of the config, as opposed to choosing an option of a group."""
    return override.package is None and not loader.get_group_options(override.key_or_group)


def _without_hydra(config: DictConfig) -> tuple[DictConfig, dict[str, str]]:
    """The job's own part, and the chosen option of every group."""
    names = {k: v for k, v in config.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    with open_dict(config):
        del config["hydra"]
    return config, names
