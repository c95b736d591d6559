"""Find the run that a person names, and what lies in it."""

from __future__ import annotations

from pathlib import Path

from gtp_exp.decode import decode
from gtp_exp.errors import UserError
from gtp_exp.model.loading import ModelConfig
from gtp_exp.records.record import (
    RECORD_NAME,
    SELECTED_NAME,
    RunRecord,
    SelectedRow,
    State,
    read_newer_record,
    read_selected,
)

_SHOWN = 3  # runs that are named where several are there


def read_run(run: Path) -> RunRecord:
    """Return the record of the run in a folder. Raise UserError for a folder that holds none, or several."""
    if not run.is_dir():
        raise UserError(f"RUN={run} is no folder; give the folder of one run, such as outputs/runs/NAME")
    if not (run / RECORD_NAME).is_file():
        inside = sorted(path.parent for path in run.glob(f"*/{RECORD_NAME}"))
        named = ", ".join(map(str, inside[:_SHOWN])) + (", ..." if len(inside) > _SHOWN else "")
        hint = f"give one of those in it: {named}" if inside else "give a folder that gtp-exp wrote"
        raise UserError(f"RUN={run} is no run, it has no {RECORD_NAME}; {hint}")
    record, _ = read_newer_record(run / RECORD_NAME)
    return record


def chosen_rows(run: Path) -> list[SelectedRow]:
    """Return the rows that a run has chosen, most important first. Raise UserError where it has none."""
    record, file = read_run(run), run / SELECTED_NAME
    if not file.is_file():
        raise UserError(f"RUN={run} has no {SELECTED_NAME}: it is {record.state.value}; {_remedy(record)}")
    rows = list(read_selected(file))
    if record.selection and tuple(row.id for row in rows) != record.selection.indices_ids:
        raise UserError(
            f"{file} holds {len(rows):,} rows that are not the {record.selection.n_selected:,} which the run "
            "has chosen, as its results.json tells; run the same command again, from the cache"
        )
    return rows


def model_config(record: RunRecord) -> ModelConfig:
    """Return the settings of the model that a run has tuned. No class is built but this one: a record may be
    someone else's."""
    node = record.config.get("model")
    if not isinstance(node, dict):
        raise UserError("the run's results.json does not tell its model; run the job again")
    settings = {key: value for key, value in node.items() if key != "_target_"}
    lora = settings.get("lora")
    if isinstance(lora, dict):
        settings["lora"] = {key: value for key, value in lora.items() if key != "_target_"}
    return decode(ModelConfig, settings, "model")


def no_model(run: Path, record: RunRecord) -> UserError:
    """Return the error for a run without a tuned model of its own."""
    if record.state is State.COMPLETE and record.config.get("until") == "selection":
        why = "it ended with the selection; run it without until=selection"
    elif record.state is State.COMPLETE:
        why = "it was run by an earlier release, or its folder has changed; run it again, from the cache"
    else:
        why = f"it is {record.state.value}; {_remedy(record)}"
    return UserError(f"RUN={run} has no tuned model: {why}")


def _remedy(record: RunRecord) -> str:
    return "wait for its end" if record.state is State.RUNNING else "run the same command again"
