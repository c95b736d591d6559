"""Tell the author of a selector what an object has that it is given, where it asks for something else."""

from __future__ import annotations

import difflib
import linecache
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from gtp_exp.errors import first_line

OURS = ("gtp_exp", "gtp_baselines")


def explain(error: Exception, problem: Any) -> str:
    """Say, in one line, where a selector misuses an object of ours and what that object has.

    problem: the SelectionProblem that the selector was given. Returns "" for an error of another kind, and
    for one in our own code: these are told by their traceback.
    """
    frame, _ = _origin(error)
    if frame is None or _package(frame.f_globals.get("__name__")) in OURS:
        return ""
    if isinstance(error, AttributeError):
        owner = error.obj
        if isinstance(owner, type) or _package(type(owner).__module__) != "gtp_exp" or not error.name:
            return ""
        close = difflib.get_close_matches(error.name, _attributes(owner), n=1)
        told = f"asks {type(owner).__name__} for '{error.name}'"
        told += f", perhaps for '{close[0]}'" if close else ""
    else:
        words = set(re.findall(r"\w+", first_line(error)))
        owner = next((value for value in _given(problem) if type(value).__name__ in words), None)
        if owner is None:
            return ""
        told = f"failed: {first_line(error)}"
    return f"{told} ({place(error)}); what it has: {', '.join(_attributes(owner))}"


def place(error: BaseException) -> str:
    """Return the file and line where an error was raised, the file as one would type it."""
    frame, line = _origin(error)
    if frame is None:
        return "?"
    file = Path(frame.f_code.co_filename)
    return f"{os.path.relpath(file) if Path.cwd() in file.parents else file}, line {line}"


def source_line(error: BaseException) -> str:
    """Return the text of the line where an error was raised, "" where the source is not there."""
    frame, line = _origin(error)
    return "" if frame is None else linecache.getline(frame.f_code.co_filename, line).strip()


def _origin(error: BaseException) -> tuple[FrameType | None, int]:
    """Return the frame and the line in which an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (None, 0) if trace is None else (trace.tb_frame, trace.tb_lineno)


def _package(module: Any) -> str:
    return str(module).partition(".")[0]


def _given(problem: Any) -> Iterator[Any]:
    """Yield what a selector can take for an array or a text: the problem, its gradients, rows and budget."""
    for features in (problem.pool_gradients, problem.target_gradients):
        if features is not None:
            yield features
            yield features.features(0, features.directions[0])
    yield from (problem, problem.budget, *problem.candidates[:1], *problem.candidate_tokens[:1])


def _attributes(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]
