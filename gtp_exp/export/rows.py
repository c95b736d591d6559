"""Write the rows that a run has chosen to a new folder, for another trainer."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from gtp_exp.errors import UserError
from gtp_exp.export.formats import DATA, FORMATS
from gtp_exp.export.runs import chosen_rows, read_run
from gtp_exp.files import folder_aside, write_whole


def export_rows(run: Path, name: str, out: Path) -> str:
    """Write a run's chosen rows in the format of that name to the new folder `out`; return what to tell.

    Raises UserError for a folder that exists, a run without a selection, and a row that the format cannot
    hold.
    """
    if out.exists():
        raise UserError(f"--out {out} exists; give a new folder, or remove it")
    record, rows = read_run(run), chosen_rows(run)
    exported = FORMATS[name](rows)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in exported.rows)
    title = (
        f"# {len(rows)} rows for {name}, chosen by {record.names.selector} from {record.names.dataset}\n\n"
    )
    # As YAML and JSON quote a text, and as a shell does: a path may hold blanks.
    places = {"{data}": json.dumps(str(out / DATA), ensure_ascii=False), "{folder}": shlex.quote(str(out))}
    with folder_aside(out) as part:
        write_whole(part / DATA, lines)
        for file, text in {**exported.files, "README.md": title + exported.usage}.items():
            for name_of_place, place in places.items():
                text = text.replace(name_of_place, place)
            write_whole(part / file, [text])
    return f"wrote {len(rows):,} rows for {name}: {out / DATA}; {out / 'README.md'} says how to train on them"
