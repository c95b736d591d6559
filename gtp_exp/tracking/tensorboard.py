"""Follow runs in TensorBoard: the option `tracking=tensorboard`.

The event files lie in RUN/tensorboard; `tensorboard --logdir outputs/runs` shows all runs, side by side.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from gtp_exp.errors import check_installed, first_line
from gtp_exp.records.record import TENSORBOARD_FOLDER
from gtp_exp.tracking import QuietTracker, RunInfo, Tracker

log = logging.getLogger(__name__)

SHOWN_ROWS = 100  # of a table, which TensorBoard shows as text
FLUSH_S = 10  # how long a loss may wait before it is on the disk, for one who watches


@dataclass(frozen=True)
class TensorBoardTracking:
    """Mirrors the event log to TensorBoard: the option `tracking=tensorboard`."""

    def __post_init__(self) -> None:
        check_installed("tracking=tensorboard", "tensorboard", extra="tensorboard")

    def tracker(self) -> Tracker:
        """Return a tracker of one run, not yet started."""
        return _TensorBoardTracker("TensorBoard")


class _TensorBoardTracker(QuietTracker):
    """Writes one run's event files."""

    def start(self, run: RunInfo) -> None:
        self.folder, self.count = run.directory / TENSORBOARD_FOLDER, {}
        self.options = {**run.options, "seed": run.config.get("seed", 0)}
        try:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier start of the job in this folder
            self.to = SummaryWriter(str(self.folder), flush_secs=FLUSH_S)
            config = json.dumps(run.shared_config, indent=1, ensure_ascii=False)
            self.to.add_text("config", "\n".join("    " + line for line in config.splitlines()))
        except Exception as error:  # tracking never fails a run
            log.warning("TensorBoard: did not start (%s)", first_line(error))
            self.to = None

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self.count[kind] = step = values.get("step", self.count.get(kind, 0) + 1)
        numbers = {name: value for name, value in numbers_of(values).items() if name != "step"}

        def send(writer: Any) -> None:
            for name, value in numbers.items():
                writer.add_scalar(f"{kind}/{name}", value, step)

        self.quietly(send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows[:SHOWN_ROWS]]
        text = "\n".join(" | ".join(_cell(value) for value in line) for line in lines)
        self.quietly(lambda writer: writer.add_text(name, text))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        def end(writer: Any) -> None:
            writer.add_text("state", "failed" if exit_code else "complete")
            writer.add_hparams(self.options, numbers_of(summary), run_name=".")  # the tab HPARAMS
            writer.close()
            for i, file in enumerate(sorted(self.folder.glob("events.out.tfevents.*"))):
                file.rename(_without_host(file, i))

        self.quietly(end)


def numbers_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what a curve can be drawn of, truth values as 0 and 1."""
    return {name: float(value) for name, value in values.items() if isinstance(value, Real)}


def _cell(value: Any) -> str:
    """Return a value as a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _without_host(file: Path, number: int) -> Path:
    """Return the name of an event file (events.out.tfevents.TIME.HOST.PID.COUNT) without the machine's."""
    started = file.name.split(".")[3]
    return file.with_name(f"events.out.tfevents.{started}.{number}")
