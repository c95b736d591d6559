"""From composed jobs (a JSON file) to the printed estimate."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.paths import at_home


def main() -> int:
    """Print the estimate for the jobs in a JSON file; return the exit status."""
    _stay_here()
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        with redirect_stdout(sys.stderr):  # libraries print on import; a reader wants the table alone
            text = estimate([job["config"] for job in asked], [job["names"] for job in asked])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def estimate(jobs: list[dict[str, Any]], names: list[dict[str, str]]) -> str:
    """Return the table for composed jobs, as text. names: the chosen option of every group of each job."""
    from gtp_exp.estimate.parts import Parts  # after the process has gone off line
    from gtp_exp.estimate.rates import measured_rates
    from gtp_exp.estimate.runs import earlier_runs, overhead
    from gtp_exp.estimate.table import estimate_table
    from gtp_exp.estimate.walk import plan

    parts = Parts(earlier_runs(at_home(jobs[0]["outputs"]) / "runs"))
    planned = plan(jobs, parts)
    return estimate_table(jobs, names, planned, measured_rates(parts, jobs), overhead(parts.runs, jobs))


def _stay_here() -> None:
    """Off line, and without the progress bars and complaints of libraries."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
