"""Keep a finished run from being replaced by one of other settings in the same folder.

Folders are numbered or named by people and presets, so two commands can lead to one folder. The same settings
run again find their results in the cache; of other settings the earlier results would be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.files import read_json
from gtp_exp.leaderboard.comparability import NO_EFFECT, settings_that_count
from gtp_exp.leaderboard.variants import ABSENT
from gtp_exp.records.record import RECORD_NAME, State
from gtp_exp.records.renamed import with_present_names

FEW = 3  # settings that are named
HOW_FAR = ("until", "validation", "tests")  # change no number, but which numbers there are


def check_finished_run(directory: Path, config: Mapping[str, Any], key: str) -> None:
    """Raise UserError where a folder holds a complete run whose results a job would replace by others.

    config: the job's resolved values. key: of the option that names another folder.
    """
    record = read_json(directory / RECORD_NAME)
    if not isinstance(record, Mapping) or record.get("state") != State.COMPLETE.value:
        return
    told = list(differences(with_present_names(record.get("config") or {}), config))
    if told:
        more = f" and {len(told) - FEW} more" if len(told) > FEW else ""
        raise UserError(
            f"'{directory}' holds a finished run of other settings ({', '.join(told[:FEW])}{more}), which "
            f"this one would replace; give {key}=DIR, a folder of its own, or remove that one"
        )


def differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings by which the results of a later run would not hold those of an earlier one.

    A run that goes further holds them: until=evaluation after until=selection, or with more `tests`. A key
    that the earlier run does not have is such a test, or an option that came after it.
    """
    before, after = _settings(earlier), _settings(later)
    if (before.get("until"), after.get("until")) == ("selection", "evaluation"):
        after["until"] = "selection"
    for key, old in sorted(before.items()):
        if old != (new := after.get(key, ABSENT)):
            yield f"{key}={old} there, {new} here"


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings, flat, that decide which numbers a run ends with."""
    left_out = {*NO_EFFECT} - {*HOW_FAR}
    if config.get("until") != "validation":
        left_out.add("validation")
    settings = settings_that_count(config, left_out)
    return {key: value for key, value in settings.items() if key != "tests"}  # of a run without any
