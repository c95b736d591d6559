"""The job's side: resolved.yaml -> checked objects -> the experiment. Never imports Hydra.

Exit status: 0 complete, 1 a fault of ours, 2 bad input, 130 interrupted. results.json tells the same story.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from gtp_exp.config import build
from gtp_exp.errors import UserError
from gtp_exp.launch import die_with_parent
from gtp_exp.results import Names, RunRecord, State, write_record
from gtp_exp.tracking import METRICS_NAME

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "lm-eval", "numpy")
OPTIONAL = ("selection_model",)  # groups that need not be chosen
log = logging.getLogger("gtp_exp")


def main() -> None:
    resolved = Path(sys.argv[1])
    directory, rank = resolved.parent, int(os.environ.get("RANK", "0"))
    die_with_parent()
    _quiet_libraries()
    if rank > 0:
        _follow(resolved)
    _log_to(directory / "worker.log")
    signal.signal(signal.SIGTERM, _interrupt)
    config, job = _read(resolved)
    record = _begin(config, job)
    write_record(record, directory)
    (directory / METRICS_NAME).unlink(missing_ok=True)
    try:
        from gtp_exp.experiment import run

        record = replace(run(assemble(config), record, directory, job), state=State.COMPLETE)
        code = 0
    except UserError as error:
        log.error("%s", error)
        record, code = replace(record, state=State.FAILED, error=str(error)), 2
    except (KeyboardInterrupt, SystemExit):
        log.error("interrupted; run the same command again to go on from the last finished stage")
        record, code = replace(record, state=State.INTERRUPTED, error="interrupted"), 130
    except Exception as error:
        if _lost_contact(error):
            log.error("another process of this job is gone")  # which one, and how, the parent knows
        else:
            log.exception("failed")
        record, code = replace(record, state=State.FAILED, error=f"{type(error).__name__}: {error}"), 1
    write_record(replace(record, finished=_now()), directory)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of tracking or data loading must not keep a finished job alive


def _lost_contact(error: Exception) -> bool:
    """Whether a message between the job's processes did not get through."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _read(resolved: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(resolved))  # type: ignore[assignment]
    job = config.pop("job")
    return config, job


def _follow(resolved: Path) -> NoReturn:
    """A process beside the main one: it works along, and reports nothing but its own end.

    Its output goes into a file of its own (launch.py).
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config, job = _read(resolved)
    code = 0
    try:
        from gtp_exp.experiment import run

        run(assemble(config), _begin(config, job), resolved.parent, job)
    except UserError as error:
        log.error("%s", error)
        code = 2
    except (KeyboardInterrupt, SystemExit):
        code = 130
    except Exception:
        log.exception("failed")
        code = 1
    sys.stderr.flush()
    os._exit(code)


def assemble(config: Mapping[str, Any], build: Callable[[Any, str], Any] = build) -> Any:
    """The Experiment: every group built by its class, and the keys outside any group by Settings."""
    from gtp_exp.experiment import Experiment, Settings

    groups = [f.name for f in fields(Experiment) if f.name != "settings"]
    parts = {name: build(config.get(name, {}), name) for name in groups if name not in OPTIONAL}
    parts |= {name: build(config[name], name) if config.get(name) else None for name in OPTIONAL}
    outside = {k: v for k, v in config.items() if k not in groups}
    target = f"{Settings.__module__}.{Settings.__qualname__}"
    return Experiment(**parts, settings=build({"_target_": target, **outside}, "config"))


def _begin(config: dict[str, Any], job: dict[str, Any]) -> RunRecord:
    return RunRecord(
        state=State.RUNNING,
        names=Names(**{f.name: str(job["names"][f.name]) for f in fields(Names)}),
        seed=config["seed"] if isinstance(config.get("seed"), int) else -1,
        group=job["group"],
        config=config,
        command=("python", "-m", "gtp_exp", *job["overrides"]),
        git_sha=_git_sha(),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        started=_now(),
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017  Python 3.10


def _git_sha() -> str | None:
    """Of this package's checkout; None in an installed copy."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _log_to(path: Path) -> None:
    handlers = [logging.StreamHandler(), logging.FileHandler(path, mode="w", encoding="utf-8")]
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers
    )
    log.setLevel(logging.INFO)


def _quiet_libraries() -> None:
    """What these libraries print at every start would hide our own messages."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    libraries = r"(torch|peft|transformers|lm_eval)\b.*"
    warnings.filterwarnings("ignore", category=UserWarning, module=libraries)
    warnings.filterwarnings("ignore", category=FutureWarning, module=libraries)


if __name__ == "__main__":
    main()
