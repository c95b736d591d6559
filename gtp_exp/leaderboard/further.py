"""Further tests (`tests=[...]`): a table for each, as if it were what the runs were tested on.

The runs chose for another target; that target stays part of the table's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gtp_exp.leaderboard.metrics import TESTED_ON
from gtp_exp.leaderboard.records import Run

TESTS = "tests"  # the key of the configuration


def further_tests(runs: Sequence[Run]) -> list[Run]:
    """Return each run once for every further test, with the results of that test in place of its own."""
    return [_as_tested(run, name) for run in runs for name in run.record.tests]


def _as_tested(run: Run, name: str) -> Run:
    record, test = run.record, run.record.tests[name]
    asked = record.config.get(TESTS)
    target = {key: rows for key, rows in record.rows.items() if key not in record.metrics}
    node = asked.get(name, {}) if isinstance(asked, dict) else {}
    return replace(
        run,
        test=name,
        record=replace(
            record,
            names=replace(record.names, benchmark=f"{record.names.benchmark}, tested on {name}"),
            config={**record.config, TESTED_ON: node},
            answers=test.answers,
            rows={**target, **test.rows},
            metrics=test.metrics,
            untuned=test.untuned,
            tests={},
        ),
    )
