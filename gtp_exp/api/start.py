"""Start a composed job: what the command line and `gtp_exp.run` have in common. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gtp_exp.api.again import with_earlier_options
from gtp_exp.api.finished import check_finished_run
from gtp_exp.api.further_tests import compose_tests
from gtp_exp.api.overrides import name_unknown_keys
from gtp_exp.config import build, check_finite
from gtp_exp.errors import UserError, check_installed, first_line
from gtp_exp.files import read_json
from gtp_exp.launch.faults import check_room, storage_fault
from gtp_exp.launch.launcher import JobExit, Launch, run_worker
from gtp_exp.launch.secrets import check_no_secrets
from gtp_exp.paths import at_home
from gtp_exp.records.record import (
    MADE_FROM,
    MODEL_FOLDER,
    RECORD_NAME,
    RUN_FILES,
    SELECTED_NAME,
    Names,
    State,
    read_record,
    write_record,
)

RESOLVED_NAME = "resolved.yaml"
# `${home:${outputs}}` is `outputs` with ~ for the home folder, for the folders that Hydra makes.
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)

# Hydra's plugins, which bring these options along: without one Hydra would say that there is no such option.
PLUGINS = {
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
    "hparams_search=optuna": ("optuna", "optuna"),
}
RUN_FOLDERS = (
    "hydra.run.dir",
    "hydra.sweep.dir",
)  # the keys by which people name a folder of runs: one, many
# Flags that show a composition, or help, and start no job.
ONLY_SHOW = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
# What Hydra's grammar reads as something other than a name, which it refuses by a traceback.
NO_NAME = re.compile(r"[+-]?(\d[\d_]*\.?\d*(e[+-]?\d+)?|\.\d+|inf|nan)|null|true|false", re.IGNORECASE)


def conf_dir() -> str:
    """Return conf/ beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "conf"
    return str(packaged if packaged.is_dir() else package.parent / "conf")


name_unknown_keys(Path(conf_dir()))


def check_not_in_a_worker() -> None:
    """Raise UserError in a process that a distributed launcher has started: a job starts its own workers."""
    if "LOCAL_RANK" in os.environ:
        raise UserError("start gtp-exp with plain python; it starts its own worker processes")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for what must not reach Hydra: secrets, folders that cannot be made, and options of
    plugins that are not installed."""
    # Before Hydra makes the run's folder, and writes the overrides of a multirun into it.
    check_no_secrets({f"argument {i}": text for i, text in enumerate(arguments, 1)})
    _check_grammar(arguments)
    _check_options(arguments)
    _check_folders(arguments)


def folder_key(multirun: bool) -> str:
    """Return the key that names the folder of a run, or that of the runs of a multirun."""
    return RUN_FOLDERS[multirun]


def with_home_folder(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ~ as the home folder where they name a folder of runs: Hydra would make a
    folder of that name."""
    return [_with_home_folder(text) for text in arguments]


def _with_home_folder(text: str) -> str:
    key, _, value = text.partition("=")
    folder = value.strip("'\"")
    if key not in RUN_FOLDERS or not folder.startswith("~"):
        return text
    quoted = os.path.expanduser(folder).replace("'", "\\'")
    return f"{key}='{quoted}'"


def _check_grammar(arguments: Sequence[str]) -> None:
    """Refuse an override that Hydra cannot read, such as a file name with other letters than English ones."""
    parser = OverridesParser.create()
    for text in arguments:
        if text.startswith("-") or "=" not in text:
            continue
        try:
            parser.parse_override(text)
        except HydraException:
            key, _, value = text.partition("=")
            raise UserError(
                f"{text} cannot be read; a text with blanks, brackets, signs or letters beyond a to z wants "
                "quotes of its own within those of the shell (in a list every text does): "
                f"\"{key}='{value}'\""
            ) from None


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse an option that leads out of its group: it is part of the name of a run's folder; a number, or
    the like, in the place of an option; and an option whose plugin is missing."""
    groups = {path.name for path in Path(conf_dir()).iterdir() if path.is_dir()}
    for text in arguments:
        key, _, value = text.partition("=")
        group = key.lstrip("+").partition("@")[0]
        options = re.split(r"[/,\[\]\s]", value) if group in groups or "/" in group else []
        if ".." in options:
            raise UserError(f"{text}: an option of {group} is the name of a file in its folder, without '..'")
        if wrong := next((option for option in options if NO_NAME.fullmatch(option)), None):
            meant = "the name of one of its options (--help lists them)"
            if group == "budget":
                rows = wrong if wrong.isdecimal() else "100"
                meant = f"budget=5pct for a share, budget=rows budget.amount={rows} for a number of rows"
            raise UserError(f"{text}: {wrong} is no option of {group}; give {meant}")
        for chosen, (module, extra) in PLUGINS.items():
            if text.startswith(chosen):
                check_installed(text, module, extra)


def _check_folders(arguments: Sequence[str]) -> None:
    """Refuse folders that Hydra would fail to make, by a traceback: of the outputs, and of runs where one is
    named. What only shows something makes none."""
    if ONLY_SHOW & {text.partition("=")[0] for text in arguments}:
        return
    for key, folder in {"outputs": "outputs", **dict.fromkeys(RUN_FOLDERS, "")}.items():
        for text in arguments:
            if text.startswith(f"{key}="):
                folder = _named_folder(text, key)
        if folder and "${" not in folder:
            remedy = "set outputs=DIR" if key == "outputs" else f"give another {key}=DIR"
            _check_folder_to_make(at_home(folder), key, remedy)


def _named_folder(text: str, key: str) -> str:
    """Return the folder that an override names; "" where it is one for each job. Raises UserError where it
    names none: an empty one would be the root of the file system, or the current folder."""
    override = OverridesParser.create().parse_override(text)
    if override.is_sweep_override():
        return ""
    value: Any = override.value()
    if isinstance(value, (int, float)) and key == "outputs":
        raise UserError(f"{text} is a number, not a folder's name; give it as \"{key}='{value}'\"")
    if value in (None, "") or isinstance(value, (list, dict)):
        raise UserError(f"{text} names no folder; give {key}=DIR")
    return str(value)


def _check_folder_to_make(folder: Path, key: str, remedy: str) -> None:
    """Refuse a folder where a file stands in its place, or above it, and one that takes no files."""
    try:
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("."))
        if not there.is_dir():
            raise UserError(f"{key}={folder} cannot be a folder: '{there}' is a file; {remedy}")
        check_room(there, needed=1 << 16)  # the run's own files, about
    except OSError as error:
        told = storage_fault(error, folder) if key == "outputs" else ""
        raise UserError(
            told or f"{key}={folder} cannot be made ({error.strerror or error}); {remedy}"
        ) from error


def chosen_options(hydra: Any) -> dict[str, str]:
    """Return the chosen option of every group but Hydra's. hydra: its own node of the configuration."""
    return {k: v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra/")}


def prepare_job(config: DictConfig, directory: Path) -> tuple[Launch, Path]:
    """Write resolved.yaml into the job's folder; return how the job is launched, and that file.

    Raises UserError for a configuration that cannot be resolved or built, for a launcher or sweeper that
    would not be heeded, for a folder that is full, and for one with files of others, or a finished run of
    other settings, that the job would replace. An earlier job's record then stays in the folder.
    """
    _check_heeded(HydraConfig.get())
    check_folder(directory)
    try:
        config, choices = with_earlier_options(config, chosen_options(HydraConfig.get()))
        launch: Any = OmegaConf.to_container(config.launch, resolve=True)
        launch = build(launch, "launch")
        described = _described(config, choices, directory)
        for name in (RECORD_NAME, SELECTED_NAME):  # a fixed folder may hold an earlier job's
            (directory / name).unlink(missing_ok=True)
        OmegaConf.save(described, directory / RESOLVED_NAME, resolve=True)
        return launch, directory / RESOLVED_NAME
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    except OSError as error:
        raise UserError(storage_fault(error, directory) or str(error)) from error


def _check_heeded(hydra_config: Any) -> None:
    """Refuse a launcher or a sweeper that is given for a single job, which Hydra starts here and at once."""
    if hydra_config.mode is RunMode.MULTIRUN:
        return
    for text in hydra_config.overrides.hydra:
        if text.startswith(("hydra/launcher=", "hydra/sweeper=")) and not text.endswith("=basic"):
            raise UserError(
                f"{text} is heeded in a multirun alone, and one job would run here; add -m, or leave it out"
            )


def check_folder(directory: Path) -> None:
    """Refuse a run's folder where a job would replace files that no job has left there."""
    model = directory / MODEL_FOLDER
    of_others = [model] if model.exists() and not (model / MADE_FROM).exists() else []
    if not (directory / RESOLVED_NAME).exists() and not _is_record(directory / RECORD_NAME):
        of_others += [directory / name for name in RUN_FILES if (directory / name).exists()]
    if of_others:
        raise UserError(
            f"'{of_others[0]}' was left there by no run, and a run would replace it; "
            "give the run a folder of its own, or none: hydra.run.dir=DIR"
        )


def _is_record(file: Path) -> bool:
    """Return whether this is the record of a run."""
    record = read_json(file)
    return isinstance(record, dict) and {"state", "stages"} <= record.keys()


def _described(config: DictConfig, choices: Mapping[str, Any], directory: Path) -> DictConfig:
    """Return the whole job with the chosen option of every group and the overrides, once it is checked."""
    hydra_config = HydraConfig.get()
    if missing := [f.name for f in fields(Names) if not choices.get(f.name)]:
        raise UserError(f"the job has no {missing[0]}; give {missing[0]}=OPTION (--help lists them)")
    compose_tests(config, str(choices["benchmark"]), hydra_config.runtime.config_sources)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    check_finite(plain)
    check_no_secrets(plain)
    check_no_secrets({"hydra": OmegaConf.to_container(hydra_config)})
    multirun = hydra_config.mode is RunMode.MULTIRUN
    check_finished_run(directory, plain, folder_key(multirun))
    with open_dict(config):
        config.job = {
            "name": directory.name,
            "group": Path(hydra_config.sweep.dir).absolute().name if multirun else directory.name,
            "names": dict(choices),
            "overrides": _command(hydra_config),
        }
    return config


def _command(hydra_config: Any) -> list[str]:
    """Return the arguments that start this job again, without folders of this machine."""
    name = hydra_config.job.config_name
    again = [] if name == "config" else ["--config-dir", ".", "--config-name", name]
    return [*again, *hydra_config.overrides.task]


def run_job(resolved: Path, launch: Launch, *, more_follow: bool = False) -> int:
    """Run a prepared job's workers to their end, see that its record tells it, and return the exit status.

    more_follow: whether it is one of several jobs, which then share the time of imports.
    """
    ended = run_worker(resolved, launch, more_follow=more_follow)
    if ended.code != 0:
        _mark_dead(resolved.parent, ended)
    return ended.status


def _mark_dead(directory: Path, ended: JobExit) -> None:
    """Tell of a worker that was killed outright, or had to be stopped, which could not say so itself."""
    if not ended.told:
        print(f"error: {ended}", file=sys.stderr)
    try:
        record = read_record(directory / RECORD_NAME)
    except UserError:
        return
    if record.state is State.RUNNING or not ended.told:
        with contextlib.suppress(OSError):  # the worker has told why nothing can be written
            write_record(replace(record, state=State.FAILED, error=str(ended)), directory)


def reason_of_failure(directory: Path, status: int) -> str:
    """Return why the job in this folder did not complete, as its record or its exit status tells."""
    try:
        return read_record(directory / RECORD_NAME).error or f"the worker ended with status {status}"
    except UserError:
        return f"ended with status {status} before it began"
