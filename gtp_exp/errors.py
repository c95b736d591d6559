"""Define the exceptions that mean "your input, not our code", which are shown as a message without a
traceback.

A message that names any other exception takes its first line from here, and what needs a package that not
everyone has installed says so by `check_installed`.
"""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """Names the offending value and the remedy. The command line prints it and exits with status 2."""


class NotHere(UserError):
    """Names a file that is not there. An estimate goes on: the job may be meant for another machine."""


class NothingToChoose(UserError):
    """Says that no candidate can be chosen. Where a pool is chosen in parts, one part may raise it and
    another not."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class where the message is
    empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_installed(asked: str, module: str, extra: str) -> None:
    """Raise UserError where a module is missing that an extra of pyproject.toml brings.

    asked: what needs it, as one writes it, such as selector=bm25. module: its dotted name; the last part of
    it is the package's name.
    """
    try:
        missing = importlib.util.find_spec(module) is None
    except ModuleNotFoundError:  # not even the package that it lies in
        missing = True
    if missing:
        package = module.rpartition(".")[2].replace("_", "-")
        raise UserError(
            f"{asked} needs the package {package}, which is not installed: "
            f"pip install '.[{extra}]' in a clone of gtp-exp"
        )
