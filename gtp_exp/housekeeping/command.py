"""Run the command gtp-exp-cache: list what the stage cache holds, and remove what no run uses."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gtp_exp.errors import UserError
from gtp_exp.housekeeping.entries import STAGES, Entry, Form, list_entries
from gtp_exp.housekeeping.prune import Wanted, remove, unused
from gtp_exp.housekeeping.uses import Uses, find_uses
from gtp_exp.launch.faults import storage_fault
from gtp_exp.paths import at_home

_SHOWN = 2  # runs that are named per entry
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def main(argv: Sequence[str] | None = None) -> int:
    """List the cache or remove from it, as the arguments ask; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        stages = _checked_stages(arguments.stage)
        cache = at_home(arguments.outputs) / "cache"
        if not cache.is_dir():
            raise UserError(f"--outputs {arguments.outputs} has no cache; give the outputs=DIR of your jobs")
        entries = list_entries(cache)
        uses = find_uses(_run_folders(arguments), entries)
        if arguments.action == "list":
            print(_listing(entries, stages, uses))
        else:
            wanted = Wanted(stages, _age(arguments.older_than), arguments.unfinished)
            print(_pruned(entries, uses, wanted, really=arguments.yes))
    except UserError as error:
        print(f"gtp-exp-cache: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gtp-exp-cache: {storage_fault(error, arguments.outputs) or error}", file=sys.stderr)
        return 2
    return 0


def _run_folders(arguments: argparse.Namespace) -> list[Path]:
    """Return where the runs lie that use the cache."""
    own = at_home(arguments.outputs) / "runs"
    return [*([own] if own.is_dir() else []), *(at_home(path) for path in arguments.runs)]


def _listing(entries: Sequence[Entry], stages: Sequence[str], uses: Uses) -> str:
    """Return a line for each entry and a sum."""
    now, lines = time.time(), []
    shown = [entry for entry in entries if not stages or entry.stage in stages]
    for entry in shown:
        users = uses.of(entry)
        named = ", ".join(users[:_SHOWN]) + (f" and {len(users) - _SHOWN} more" if users[_SHOWN:] else "")
        what = named or "no run"
        if entry.form is not Form.WHOLE:
            what = entry.form.value
        size, age = _size(entry.bytes), _told_age(now - entry.last_used)
        lines.append(f"{entry.stage:<11}{entry.key[:12]:<13}{size:>9}  {age:>5}  {what}")
    head = f"{'stage':<11}{'key':<13}{'size':>9}  {'age':>5}  used by"
    runs = "1 run" if len(uses.runs) == 1 else f"{len(uses.runs)} runs"
    total = f"{_number(shown)}, {_size(sum(entry.bytes for entry in shown))}; {runs}"
    free = unused(shown, uses, Wanted(), now)
    size = _size(sum(entry.bytes_only_here for entry in free))
    if free:
        total += f". No run uses {len(free)} of them, {size}: gtp-exp-cache prune"
    unread = [f"not read, so its entries count as used by no run: {reason}" for reason in uses.unreadable]
    return "\n".join([head, *lines, total, *unread])


def _pruned(entries: Sequence[Entry], uses: Uses, wanted: Wanted, *, really: bool) -> str:
    """Remove what no run uses, or say what would go; return what to tell."""
    if uses.unreadable:
        raise UserError(
            f"what a run uses cannot be told: {uses.unreadable[0]}; mend, move or delete that run first"
        )
    if not uses.runs:
        raise UserError(
            "no run was found, so all of the cache would go: give --runs FOLDER, or delete it yourself"
        )
    free = unused(entries, uses, wanted, time.time())
    kept = len(entries) - len(free)
    if not really:
        size = _size(sum(entry.bytes_only_here for entry in free))
        lines = [f"{entry.stage}/{entry.key}  {_size(entry.bytes_only_here)}" for entry in free]
        last = f"would remove {_number(free)}, {size}, and keep {kept}; nothing is removed without --yes"
        return "\n".join([*lines, last])
    done = remove(free)
    size = _size(sum(entry.bytes_only_here for entry in done.removed))
    told = f"removed {_number(done.removed)}, {size}; kept {kept + len(done.held)}"
    return told + (
        f", {len(done.held)} of them because a job holds them or used them just now" * bool(done.held)
    )


def _number(entries: Sequence[Entry]) -> str:
    return "1 entry" if len(entries) == 1 else f"{len(entries)} entries"


def _checked_stages(stages: Sequence[str]) -> tuple[str, ...]:
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"--stage {stage} is unknown; give one of {', '.join(STAGES)}")
    return tuple(stages)


def _age(text: str | None) -> float:
    """Return an age such as 12h or 30d in seconds."""
    if text is None:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if found is None:
        raise UserError(f"--older-than {text} is no age; give a number and m, h, d or w, such as 12h or 30d")
    return float(found[1]) * _SECONDS[found[2]]


def _told_age(seconds: float) -> str:
    unit = next((u for u in ("w", "d", "h") if seconds >= 2 * _SECONDS[u]), "m")
    return f"{max(0, int(seconds / _SECONDS[unit]))} {unit}"


def _size(n: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n} B"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gtp-exp-cache", description="Look after the stage cache.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|prune")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="default: %(default)s"
    )
    shared.add_argument(
        "--runs",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="further runs that use this cache, beside those in DIR/runs (repeatable)",
    )
    shared.add_argument(
        "--stage", action="append", default=[], help=f"one of {', '.join(STAGES)} (repeatable); default: all"
    )
    actions.add_parser(
        "list", parents=[shared], help="stage, key, size, age since last use, and the runs that use it"
    )
    prune = actions.add_parser("prune", parents=[shared], help="remove what no run uses")
    prune.add_argument("--yes", action="store_true", help="remove it; else only say what would go")
    prune.add_argument("--older-than", metavar="AGE", help="only what was not used for so long: 12h, 30d, 2w")
    prune.add_argument(
        "--unfinished", action="store_true", help="also what interrupted jobs would go on from, used or not"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
