"""Compose `tests`: benchmarks that a job is tested on beside the one it aims at.

    gtp-exp 'tests=[mmlu,gsm8k]'
    gtp-exp 'tests=[mmlu,{gsm8k:{test_rows:200}}]'

Each entry names an option of the group benchmark, with values to override. Composed, `tests` maps each name
to the option's node, which is how resolved.yaml holds it. Imports no torch.
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
    the job, where options are looked for. Raises UserError for a name that is no option, for one that occurs
    twice, and for a value that the option does not have.
    """
    asked = config.get("tests") or []
    asked = OmegaConf.to_container(asked) if OmegaConf.is_config(asked) else asked
    composed: dict[str, Any] = {}
    for name, values in _entries(asked):
        if name in (main, *composed):
            raise UserError(
                f"tests names {name} twice"
                + (f", as benchmark={name} does" if name == main else "")
                + "; leave one out (an option of your own may have the same contents under another name)"
            )
        composed[name] = values if CLASS in values else _with_values(name, values, _loader(sources))
    with open_dict(config):
        config.tests = composed


def _entries(asked: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each test and its values."""
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
