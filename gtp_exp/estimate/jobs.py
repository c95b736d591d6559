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

from gtp_exp.api.again import with_earlier_options
from gtp_exp.api.further_tests import compose_tests
from gtp_exp.api.start import chosen_options
from gtp_exp.errors import UserError

Composition = tuple[DictConfig, dict[str, str]]  # a job's own part, and the option of every group


def compose_jobs(arguments: Sequence[str], conf_dir: str) -> list[dict[str, Any]]:
    """One {"config": resolved values, "names": group -> option} per job, in the order they would run.

    arguments: those of the command line. Raises what Hydra raises for a wrong one, and UserError for a
    sweeper whose jobs depend on earlier results.
    """
    asked = get_args_parser().parse_args(list(arguments))
    overrides = list(asked.overrides)
    with initialize_config_dir(conf_dir, version_base="1.3"):
        loader = _loader(asked.config_dir)
        name = asked.config_name or "config"
        master = loader.load_configuration(name, overrides, run_mode=RunMode.MULTIRUN)
        if not (asked.multirun or master.hydra.mode is RunMode.MULTIRUN):
            config, names = _without_hydra(loader.load_configuration(name, overrides, run_mode=RunMode.RUN))
            return [_job(config, names, master.hydra.runtime.config_sources)]
        if "BasicSweeper" not in master.hydra.sweeper._target_:
            raise UserError(
                f"{master.hydra.sweeper._target_} chooses its jobs as it goes, so they cannot be told; "
                "estimate one of them: without -m, and with values in place of what is searched"
            )
        params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        tasks: Any = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)  # ${seed}: each job's
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *tasks])
        (combinations,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return _compose(loader, master, combinations)


def _loader(config_dir: str | None) -> Any:
    """Return a loader of ours that looks into a folder of the user's, too, for the primary configuration as
    well: `hydra.searchpath` would name it for the options of groups alone."""
    loader: Any = GlobalHydra.instance().config_loader()
    if config_dir is None:
        return loader
    if not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder")
    path = loader.get_search_path()
    path.prepend("command-line", f"file://{Path(config_dir).resolve()}", anchor="schema")  # which is the last
    return ConfigLoaderImpl(path)


def _compose(loader: Any, master: DictConfig, combinations: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Hydra needs a tenth of a second for a job, most of it to find and read the options of the groups: jobs
    that differ in plain values only are composed once."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = {
        line: parser.parse_override(line) for line in {line for lines in combinations for line in lines}
    }
    values = {line: override for line, override in parsed.items() if _is_value(override, loader)}
    compositions, jobs = _Compositions(loader, master), []
    for lines in combinations:
        config, names = compositions.of(tuple(line for line in lines if line not in values))
        config = copy.deepcopy(config)
        ConfigLoaderImpl._apply_overrides_to_config(
            [values[line] for line in lines if line in values], config
        )
        jobs.append(_job(config, names, master.hydra.runtime.config_sources))
    return jobs


class _Compositions:
    """Compose a sweep's combinations of options, each option only once beside those of the first combination.

    Where two options differ from the first combination in different keys of the configuration, both together
    differ from it in the keys of both. Where they differ in the same key, Hydra composes them together.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._first: tuple[str, ...] = ()
        self._done: dict[tuple[str, ...], Composition] = {}
        self._changes: dict[tuple[str, ...], dict[str, Any]] = {}  # to the first, by key

    def of(self, lines: tuple[str, ...]) -> Composition:
        """Return the configuration of a combination, not to be changed, and the option of every group."""
        if lines not in self._done:
            self._first = self._first or lines
            self._done[lines] = self._joined(lines) or self._by_hydra(lines)
        return self._done[lines]

    def _by_hydra(self, lines: tuple[str, ...]) -> Composition:
        return _without_hydra(self._loader.load_sweep_config(self._master, list(lines)))

    def _joined(self, lines: tuple[str, ...]) -> Composition | None:
        """Return the first combination with the changes that each other option makes, if they are apart."""
        differ = [i for i, (ours, first) in enumerate(zip(lines, self._first, strict=False)) if ours != first]
        if len(lines) != len(self._first) or len(differ) < 2:
            return None
        first, first_names = self.of(self._first)
        names, changed = dict(first_names), dict[str, Any]()
        for i in differ:
            alone = (*self._first[:i], lines[i], *self._first[i + 1 :])
            changes = self._changes_of(alone)
            if changed.keys() & changes.keys() or not all(key in first for key in changes):
                return None
            changed |= changes
            names_alone = self.of(alone)[1]
            names = {group: option for group, option in names.items() if group in names_alone} | {
                group: option for group, option in names_alone.items() if first_names.get(group) != option
            }
        config = copy.deepcopy(first)
        with open_dict(config):
            config.update(changed)
        return config, names

    def _changes_of(self, lines: tuple[str, ...]) -> dict[str, Any]:
        """Return the keys, unresolved, in which a combination differs from the first."""
        if lines not in self._changes:
            ours, first = (
                OmegaConf.to_container(self.of(which)[0], resolve=False) for which in (lines, self._first)
            )
            assert isinstance(ours, dict) and isinstance(first, dict)
            keys = map(str, ours.keys() | first.keys())
            self._changes[lines] = {k: ours.get(k) for k in keys if ours.get(k) != first.get(k)}
        return self._changes[lines]


def _job(config: DictConfig, names: dict[str, str], sources: Any) -> dict[str, Any]:
    """Return one composed job, with its further tests."""
    config, names = with_earlier_options(config, names)
    compose_tests(config, str(names.get("benchmark")), sources)
    return {"config": OmegaConf.to_container(config, resolve=True), "names": names}


def _is_value(override: Override, loader: Any) -> bool:
    """Whether it sets a key of the config, as opposed to choosing an option of a group."""
    return override.package is None and not loader.get_group_options(override.key_or_group)


def _without_hydra(config: DictConfig) -> tuple[DictConfig, dict[str, str]]:
    """The job's own part, and the chosen option of every group."""
    names = chosen_options(config.hydra)
    with open_dict(config):
        del config["hydra"]
    return config, names
