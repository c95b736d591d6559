"""Runs until=validation, in tables of their own: the loss on rows held back from the selector, as if these
were a test.

Such runs aimed at fewer target rows than others, so they never share a table with tested ones.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from gtp_exp.leaderboard.metrics import LOSS, TESTED_ON, VALIDATED
from gtp_exp.leaderboard.records import Run


def with_validation_as_test(run: Run) -> Run:
    """Return the run with the loss on its validation rows in place of metrics; unchanged without one."""
    record, measured = run.record, run.record.validation
    if measured is None:
        return run
    tuned = {"headline": LOSS, "rows_tested": float(measured.rows), **asdict(measured.tuned)}
    return replace(
        run,
        record=replace(
            record,
            names=replace(record.names, benchmark=f"{record.names.benchmark}, rows held back for validation"),
            config={**record.config, TESTED_ON: record.config.get("validation")},
            metrics={VALIDATED: tuned},
            untuned={VALIDATED: {"headline": LOSS, **asdict(measured.untuned)}},
            validation=None,
        ),
    )
