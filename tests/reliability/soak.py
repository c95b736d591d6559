"""Kills a small real job again and again, at random moments, and holds what is left to what was promised.

    PYTHONPATH=tests python -m reliability.soak --kills 30 --seed 0   # from the repository root

A job is killed several times in a row, then run to its end and compared with one that nobody touched. After
every kill no process of it may be left, no lock held, no finished entry touched, no half entry taken for a
whole one. Status 1 if anything is violated; then the folders are kept.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from reliability.tiny_job import Outcome, adapter_distance, command, differences
from tqdm import tqdm

from gtp_exp.files import MANIFEST, first_damage, read_json, read_sealed, sha256_file

OUTSIDE = "start-up, between stages"
GONE_S = 30.0  # what a job's processes get to end after a kill
LONGEST_S = 600.0  # of one job
POLL_S = 0.01
RELEASED_S = 2.0  # an ending process gives up its files a moment after its command line

Snapshot = dict[str, tuple[int, str]]  # file of a finished entry -> when it was written, checksum


@dataclass(frozen=True)
class Reference:
    """A job that ran undisturbed; every disturbed one has the same stages under the same keys."""

    outcome: Outcome
    processes: int
    start_s: float  # until the first stage had begun

    @property
    def stages(self) -> dict[str, Path]:
        """Each stage's entry, relative to the outputs folder."""
        return {n: p.relative_to(self.outcome.folder) for n, p in self.outcome.entries.items()}

    def seconds(self, stage: str) -> float:
        return self.start_s if stage == OUTSIDE else self.outcome.record["stages"][stage]["seconds"]


@dataclass(frozen=True)
class Kill:
    stage: str
    victim: str
    gone_s: float  # until the last process of the job was gone
    kept: int  # finished entries afterwards


@dataclass
class Tally:
    kills: list[Kill] = field(default_factory=list)
    folders: int = 0
    reused: int = 0  # finished entries that the last run of a folder took over
    distance: float = 0.0  # of a tuned adapter to the undisturbed one
    violations: list[str] = field(default_factory=list)


class Job:
    """One real command line with all its processes."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder = folder
        with (folder.parent / f"{folder.name}.log").open("a") as output:
            self.parent = subprocess.Popen(
                command(folder, processes), stdout=output, stderr=subprocess.STDOUT
            )

    def members(self) -> dict[int, str]:
        """Living processes of the job, also those that lost their parent -> their command line."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_text(errors="replace")
                alive = (process / "stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
            except OSError:
                continue
            if alive and f"{self.folder}/" in line:
                found[int(process.name)] = line
        return found

    def victims(self) -> dict[str, int]:
        """The processes by their part in the job; a rank is there once it has started."""
        workers = [pid for pid, line in self.members().items() if "gtp_exp.worker" in line]
        return {**{_role(pid): pid for pid in workers}, "parent": self.parent.pid}

    def gone(self) -> float | None:
        """Seconds until the last process was gone; None if some had to be ended here."""
        start = time.monotonic()
        while time.monotonic() - start < GONE_S:
            self.parent.poll()  # or it would stay as a zombie
            if not self.members():
                return time.monotonic() - start
            time.sleep(0.05)
        self.end()
        return None

    def end(self) -> None:
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.parent.wait()


def _role(worker: int) -> str:
    try:
        environment = Path(f"/proc/{worker}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return "worker"
    return next((f"rank {pair[5:]}" for pair in environment if pair.startswith("RANK=")), "worker")


def undisturbed(folder: Path, processes: int) -> Reference:
    folder.mkdir()
    job, start = Job(folder, processes), time.monotonic()
    try:
        while not list(folder.glob("cache/warmup/*.lock")) and job.parent.poll() is None:
            time.sleep(POLL_S)
        start_s = time.monotonic() - start
        code = job.parent.wait(LONGEST_S)
    finally:
        job.end()
    if code:
        raise RuntimeError(f"the undisturbed job ended with status {code}; see {folder}.log")
    return Reference(Outcome(folder), processes, start_s)


def disturb(
    reference: Reference, folder: Path, times: int, rng: random.Random, tally: Tally, progress: tqdm
) -> None:
    """Kills the job in this folder so many times, lets it end, and compares."""
    folder.mkdir()
    tally.folders += 1
    before: Snapshot = {}
    for _ in range(times):
        kill = _kill_once(reference, folder, rng)
        after = snapshot(folder)
        complaints = [*check_stopped(folder, before, after), *_too_early(reference, folder)]
        if kill is None:  # it was through before the moment came
            break
        if kill.gone_s < 0:
            complaints.append(f"processes were left {GONE_S:.0f} s after the kill")
        tally.kills.append(kill)
        progress.update()
        tally.violations += [f"{folder.name}, {kill.victim} killed in {kill.stage}: {c}" for c in complaints]
        before = after
    finished = [stage for stage, entry in reference.stages.items() if (folder / entry).is_dir()]
    tally.violations += [f"{folder.name}: {c}" for c in _to_the_end(reference, folder, finished, before)]
    tally.reused += len(finished)
    if Outcome(folder).record["state"] == "complete":
        tally.distance = max(tally.distance, adapter_distance(reference.outcome, Outcome(folder)))


def _kill_once(reference: Reference, folder: Path, rng: random.Random) -> Kill | None:
    open_stages = [s for s, entry in reference.stages.items() if not (folder / entry).exists()]
    if not open_stages:
        return None
    aim = rng.choice([OUTSIDE, *open_stages])
    delay = rng.random() * reference.seconds(aim)
    job = Job(folder, reference.processes)
    try:
        while aim != OUTSIDE and _stage_now(reference, folder) != aim:
            if job.parent.poll() is not None or (folder / reference.stages[aim]).exists():
                break
            time.sleep(POLL_S)
        time.sleep(delay)
        victims = job.victims()
        victim = rng.choice(sorted(victims))
        stage = _stage_now(reference, folder)
        if job.parent.poll() is not None:
            return None
        os.kill(victims[victim], signal.SIGKILL)
        gone = job.gone()
    finally:
        job.end()
    kept = sum((folder / entry).exists() for entry in reference.stages.values())
    return Kill(stage, victim, -1.0 if gone is None else gone, kept)


def _stage_now(reference: Reference, folder: Path) -> str:
    """The stage that holds its lock; its `.part` may have lain there since an earlier kill."""
    held = Path("/proc/locks").read_text()  # asking for the lock would get in the job's way
    for stage, entry in reference.stages.items():
        lock = (folder / entry).with_name(entry.name + ".lock")
        if lock.exists() and f":{lock.stat().st_ino} " in held and not (folder / entry).exists():
            return stage
    return OUTSIDE


def _to_the_end(
    reference: Reference, folder: Path, finished: Sequence[str], before: Snapshot
) -> Iterator[str]:
    job = Job(folder, reference.processes)
    try:
        code = job.parent.wait(LONGEST_S)
        if code:
            yield f"the last run ended with status {code}"
        if job.gone() is None:
            yield "processes were left after the last run"
    finally:
        job.end()
    outcome = Outcome(folder)
    yield from differences(reference.outcome, outcome)
    yield from check_stopped(folder, before, snapshot(folder))
    for stage in finished:
        if not outcome.record["stages"].get(stage, {}).get("cached"):
            yield f"{stage} was finished, and computed again"


def snapshot(folder: Path) -> Snapshot:
    """The files of all finished entries."""
    entries = [p for p in folder.glob("cache/*/*") if p.is_dir() and not p.name.endswith(".part")]
    files = [file for entry in entries for file in sorted(entry.rglob("*")) if file.is_file()]
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, sha256_file(f)) for f in files}


def _too_early(reference: Reference, folder: Path) -> Iterator[str]:
    record = read_json(folder / "runs" / "run" / "results.json")
    unfinished = [stage for stage, entry in reference.stages.items() if not (folder / entry).exists()]
    if record is not None and record["state"] == "complete" and unfinished:
        yield f"results.json calls the job complete without {unfinished}"


def check_stopped(folder: Path, before: Snapshot, after: Snapshot) -> Iterator[str]:
    """What a job that is over may not leave behind."""
    for path in folder.rglob("*.lock"):
        try:
            with FileLock(str(path), timeout=RELEASED_S):
                pass
        except Timeout:
            yield f"the lock {path.relative_to(folder)} is held"
    for name, seen in before.items():
        if after.get(name) != seen:
            yield f"the finished {name} was touched"
    for manifest in folder.glob(f"cache/*/*/{MANIFEST}"):
        if manifest.parent.name.endswith(".part"):
            continue
        recorded = read_sealed(manifest)
        damage = "its manifest is damaged" if recorded is None else ""
        if damage := damage or first_damage(manifest.parent, (recorded or {})["files"]):
            yield f"{manifest.parent.relative_to(folder)} passes for finished, but {damage}"


def report(tally: Tally, seconds: float) -> str:
    """Kills by stage and victim, what was kept, and what was violated."""
    victims = sorted({kill.victim for kill in tally.kills})
    counts = Counter((kill.stage, kill.victim) for kill in tally.kills)
    lines = [f"{'killed in':34}" + "".join(f"{v:>9}" for v in victims) + f"{'all':>6}{'kept':>7}{'gone':>8}"]
    for stage in dict.fromkeys(kill.stage for kill in sorted(tally.kills, key=lambda k: (k.kept, k.stage))):
        here = [kill for kill in tally.kills if kill.stage == stage]
        row = "".join(f"{counts[stage, v]:>9}" for v in victims)
        kept = sum(kill.kept for kill in here) / len(here)
        gone = max(kill.gone_s for kill in here)
        lines.append(f"{stage:34}{row}{len(here):>6}{kept:>7.1f}{gone:>7.1f}s")
    lines += [
        f"{len(tally.kills)} kills in {tally.folders} folders, {seconds / 60:.1f} min; kept: finished "
        "entries at the kill, mean; gone: seconds until the last process had ended, at most",
        f"{tally.reused} finished entries reused by the last runs; tuned adapters off by at most "
        f"{tally.distance:.1e}",
        f"violations: {len(tally.violations)}",
        *(f"  {line}" for line in tally.violations),
    ]
    return "\n".join(lines)


def soak(kills: int, seed: int, root: Path, in_a_row: int = 6, pairs: bool = True) -> Tally:
    """pairs: every third folder's job is one of two processes."""
    rng, tally = random.Random(seed), Tally()
    references: dict[int, Reference] = {}
    with tqdm(total=kills, unit="kill", desc="soak") as progress:
        while len(tally.kills) < kills:
            processes = 2 if pairs and tally.folders % 3 == 2 else 1
            if processes not in references:
                progress.set_postfix_str(f"undisturbed, {processes} process(es)")
                references[processes] = undisturbed(root / f"undisturbed-{processes}", processes)
            times = min(rng.randint(1, in_a_row), kills - len(tally.kills))
            progress.set_postfix_str(f"folder {tally.folders}, {len(tally.violations)} violations")
            folder = root / f"job-{tally.folders}"
            disturb(references[processes], folder, times, rng, tally, progress)
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reliability.soak", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of moments, stages and victims")
    parser.add_argument("--in-a-row", type=int, default=6, help="kills in one folder, at most")
    arguments = parser.parse_args(argv)
    if arguments.kills < 1 or arguments.in_a_row < 1:
        parser.error("--kills and --in-a-row must be at least 1")
    root, start = Path(tempfile.mkdtemp(prefix="gtp-exp-soak-")), time.monotonic()
    tally = soak(arguments.kills, arguments.seed, root, arguments.in_a_row)
    print(report(tally, time.monotonic() - start))
    if tally.violations:
        print(f"kept for inspection: {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
