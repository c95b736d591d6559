"""Compose `tests`: benchmarks that a job is tested on beside the one it aims at.

    gtp-exp 'tests=[mmlu,gsm8k]'
    gtp-exp 'tests=[mmlu,{gsm8k:{test_rows:200}}]'
    gtp-exp 'tests=[{jsonl_choice:{name:exam,test:exam.jsonl}},{jsonl_choice:{name:quiz,test:quiz.jsonl}}]'

Each entry names an option of the group benchmark, with values to override. A test is called by the `name`
among these values where they have one, so that an option may occur several times, and by its option
otherwise. Composed, `tests` maps what each test is called to the option's node, which is how resolved.yaml
holds it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gtp_exp.errors import UserError, first_line

GROUP = "benchmark"
CLASS = "_target_"


def compose_tests(config: DictConfig, main: str, sources: Any) -> None:
    """Put the composed node of every further test in the place of what `tests` says.

    main: the option of the group benchmark that the job aims at. sources: `hydra.runtime.config_sources` of
    the job, where options are looked for. Raises UserError for an option that there is not, for two tests
    that are called the same, and for a value that the option does not have.
    """
    asked = config.get("tests") or []
    asked = OmegaConf.to_container(asked) if OmegaConf.is_config(asked) else asked
    composed: dict[str, Any] = {}
    for option, values in _entries(asked):
        whole = CLASS in values  # composed before, and called by its key
        name = option if whole else _called(option, values)
        if name in (main, *composed):
            raise UserError(
                f"tests names {name} twice"
                + (f", as benchmark={name} does" if name == main else "")
                + "; leave one out, or tell them apart: by a name where the option has one "
                "({jsonl_choice:{name:exam}}), by an option of your own with the same contents otherwise"
            )
        composed[name] = values if whole else _with_values(option, values, _loader(sources))
    with open_dict(config):
        config.tests = composed


def _entries(asked: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the option of each test and its values."""
    if isinstance(asked, Mapping):
        asked = [{name: values} for name, values in asked.items()]
    if not isinstance(asked, list):
        raise UserError(f"tests={asked!r} must be a list of benchmarks, such as [mmlu,gsm8k]")
    for entry in asked:
        named = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(named, Mapping) or not all(isinstance(v or {}, Mapping) for v in named.values()):
            raise UserError(
                f"tests: {entry!r} must be the name of a benchmark, or a name with values to override, such "
                "as {gsm8k:{test_rows:200}}"
            )
        for name, values in named.items():
            yield str(name), dict(values or {})


def _called(option: str, values: Mapping[str, Any]) -> str:
    """Return what a test is called in tables."""
    name = values.get("name")
    return name if isinstance(name, str) and name and "${" not in name else option


def _loader(sources: Any) -> ConfigLoaderImpl:
    """Return a loader that looks for options where the job's were found."""
    path = ConfigSearchPathImpl()
    for source in sources:
        path.append(source.provider, f"{source.schema}://{source.path}")
    return ConfigLoaderImpl(path)


def _with_values(name: str, values: Mapping[str, Any], loader: ConfigLoaderImpl) -> Any:
    """Return the node of an option with some of its values overridden, interpolations unresolved."""
    known = loader.get_group_options(GROUP)
    if name not in known:
        raise UserError(f"tests: there is no benchmark {name}; there are {', '.join(known)}")
    config = loader.load_configuration(None, [f"+{GROUP}@entry={name}"], run_mode=RunMode.RUN)
    node = config.entry
    if unknown := [key for key in values if key not in list(node)]:
        raise UserError(f"tests.{name} has no {unknown[0]}; it has {', '.join(map(str, node))}")
    try:
        return OmegaConf.to_container(OmegaConf.merge(node, values))
    except OmegaConfBaseException as error:
        raise UserError(f"tests.{name}: {first_line(error)}") from error
