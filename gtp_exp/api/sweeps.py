"""Refuse a sweep that would fit settings to the tests, before any job of it starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from gtp_exp.errors import UserError

GRID = "BasicSweeper"  # Hydra's own, which runs every combination and heeds no value
VALIDATION = "validation"


class TuneOnValidation(Callback):
    """Ends a multirun whose sweeper would be told test results: Hydra calls it with every composition."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process with one line where `check_sweep` refuses the multirun."""
        try:
            check_sweep(config)
        except UserError as error:  # which Hydra would turn into a warning
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def check_sweep(config: DictConfig) -> None:
    """Raise UserError for a sweeper that looks at the jobs' values where these are not the validation loss,
    and for one that would look for the largest loss.

    config: that of a multirun, with Hydra's own part.
    """
    sweeper = config.hydra.sweeper
    if GRID in sweeper._target_:
        return
    name = sweeper._target_.rpartition(".")[2]
    swept = [text.partition("=") for text in config.hydra.overrides.task]
    swept += [(str(key), "=", str(value)) for key, value in (sweeper.get("params") or {}).items()]
    asked = [config.get("until"), *(value for key, _, value in swept if key.lstrip("+") == "until")]
    if other := [until for until in asked if until != VALIDATION]:
        raise UserError(
            f"{name} looks for settings by what jobs measure, with until={other[-1]} the tests or nothing; "
            "give until=validation, which measures on target rows held back from the selector"
        )
    direction = sweeper.get("direction")
    directions = (
        direction if isinstance(direction, Sequence) and not isinstance(direction, str) else [direction]
    )
    if any(str(getattr(each, "name", each)).lower() == "maximize" for each in directions):
        raise UserError(
            "the value of a job until=validation is a loss, lower is better; give "
            "hydra.sweeper.direction=minimize"
        )
