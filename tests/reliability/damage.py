"""Damages every file of a finished job's cache; the next run has to notice it and to give the same result.

    PYTHONPATH=tests python -m reliability.damage --seed 0   # from the repository root

One file of every entry at a time: a bit is flipped, the end is cut off, the file is deleted. Status 1 if any
damage went unnoticed or a result changed.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Any

from reliability.tiny_job import Outcome, differences, run_here, without_timings
from tqdm import tqdm

from gtp_exp.files import MANIFEST, read_json, sha256_file

# Fewer and larger files than in the job that is killed: each of them costs three runs.
SMALL = ("dataset.rows=40", "gradients.warmup.epochs=2", "gradients.shard_rows=24")
# Makes a pass of the model over the pool, which gtp does not need.
WITH_PASS = ("selector=perplexity_top", "until=selection")


class Way(Enum):
    FLIP = "bit flipped"
    TRUNCATE = "cut off"
    DELETE = "deleted"


def damage(file: Path, way: Way, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if way is Way.DELETE:
        file.unlink()
    elif way is Way.TRUNCATE:
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


def entries(folder: Path) -> list[Path]:
    """The finished entries of every stage, and the models that were made."""
    return sorted(manifest.parent for manifest in folder.glob(f"cache/*/*/{MANIFEST}"))


def files(entry: Path) -> list[Path]:
    return [p for p in sorted(entry.rglob("*")) if p.is_file() and p.stat().st_size]


def noticed(file: Path, entry: Path, messages: Sequence[str]) -> bool:
    """Whether a warning names the entry and the damaged file."""
    name = str(file.relative_to(entry))
    return any(str(entry) in m and "damaged" in m and name in m for m in messages)


def contents(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the entries hold: checksums, and JSON without what was measured by the clock."""
    return {
        entry: {str(f.relative_to(entry)): _content(f) for f in files(entry) if f.name != MANIFEST}
        for entry in entries(folder)
    }


def _content(file: Path) -> Any:
    return without_timings(read_json(file)) if file.suffix == ".json" else sha256_file(file)


@dataclass
class Tally:
    damaged: Counter[tuple[str, Way]] = field(default_factory=Counter)
    noticed: int = 0
    equal: int = 0  # entries that were made again as they were
    violations: list[str] = field(default_factory=list)


class Messages(logging.Handler):
    """What the package logs."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger("gtp_exp").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def take(self) -> list[str]:
        taken, self.texts = self.texts, []
        return taken


def finish(folder: Path, with_pass: bool) -> Outcome:
    if with_pass:
        run_here(folder, *SMALL, *WITH_PASS)
    return run_here(folder, *SMALL)


def rounds(folder: Path) -> Iterator[tuple[Way, list[tuple[Path, Path]]]]:
    """(how, [(entry, file)]): every file of every entry once in each way, one of each entry in a round."""
    of = {entry: files(entry) for entry in entries(folder)}
    for way in Way:
        for chosen in zip_longest(*of.values()):
            yield way, [(e, file) for e, file in zip(of, chosen, strict=True) if file is not None]


def exhaust(root: Path, seed: int) -> Tally:
    rng, tally, messages = random.Random(seed), Tally(), Messages()
    logging.getLogger("gtp_exp").setLevel(logging.WARNING)
    work, calm = root / "damaged", Outcome(root / "calm")
    finish(work, with_pass=True)  # there, for an adapter names the folder of its model
    shutil.copytree(work, calm.folder)
    before = contents(work)
    readers = {entry for entry in before if entry.parent.name == "selection"}
    for way, chosen in tqdm(list(rounds(work)), desc="damage", unit="run"):
        for _, file in chosen:
            damage(file, way, rng)
        stages = {entry.parent.name for entry, _ in chosen}
        if "pass" in stages:
            for entry in readers - {entry for entry, _ in chosen}:
                shutil.rmtree(entry)  # a pass is looked at by a selection that is made anew
        messages.take()
        found, told = finish(work, with_pass=bool(stages & {"pass", "selection"})), messages.take()
        after = contents(work)
        for entry, file in chosen:
            tally.damaged[entry.parent.name, way] += 1
            where = f"{file.relative_to(work)}, {way.value}"
            if noticed(file, entry, told):
                tally.noticed += 1
            else:
                tally.violations.append(f"{where}: went unnoticed")
            if after.get(entry) == before[entry]:
                tally.equal += 1
            else:
                tally.violations.append(f"{where}: its entry was not made again as it was")
        tally.violations += differences(calm, found)
    return tally


def report(tally: Tally) -> str:
    stages = sorted({stage for stage, _ in tally.damaged})
    lines = [f"{'files damaged in':18}" + "".join(f"{way.value:>14}" for way in Way)]
    lines += [f"{s:18}" + "".join(f"{tally.damaged[s, way]:>14}" for way in Way) for s in stages]
    total = sum(tally.damaged.values())
    lines.append(f"{total} damaged, {tally.noticed} named by a warning, {tally.equal} rebuilt equal")
    lines += [f"violations: {len(tally.violations)}", *(f"  {line}" for line in tally.violations)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reliability.damage", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bits and of where files are cut off")
    arguments = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="gtp-exp-damage-"))
    tally = exhaust(root, arguments.seed)
    print(report(tally))
    shutil.rmtree(root)
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
