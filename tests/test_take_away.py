"""docs/take_away.md: its commands are ones that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gtp_exp.export import command as export
from gtp_exp.export.formats import FORMATS
from gtp_exp.housekeeping import command as cache

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "take_away.md").read_text()
PARSERS = {"gtp-exp-export": export, "gtp-exp-cache": cache}
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.split()[0] in PARSERS]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_understood(line):
    program, *arguments = shlex.split(line)
    parsed = PARSERS[program]._parser().parse_args(arguments)
    if program == "gtp-exp-export":
        export._check(parsed)


def test_the_page_shows_every_format():
    assert len(COMMANDS) == 9
    assert {name for name in FORMATS if f"--format {name} " in "\n".join(COMMANDS)} == set(FORMATS)
    assert {name for name in FORMATS if f"| `{name}` |" in PAGE} == set(FORMATS)
