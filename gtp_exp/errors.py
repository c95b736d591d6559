"""Define the exceptions that mean "your input, not our code", which are shown as a message without a
traceback.

A message that names any other exception takes its first line from here.
"""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """Names the offending value and the remedy. The command line prints it and exits with status 2."""


class NothingToChoose(UserError):
    """Says that no candidate can be chosen. Where a pool is chosen in parts, one part may raise it and
    another not."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class where the message is
    empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_bitsandbytes(option: str) -> None:
    """Raise UserError where the package that an option needs is not installed. option: as it is written."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{option} needs the package bitsandbytes, which is not installed; "
            "pip install 'gtp-exp[quantization]', in a checkout pip install '.[quantization]'"
        )
