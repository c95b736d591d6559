"""Measure selections in processes of their own: time, memory, passes of the pool, and numbers sent."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gtp_benchmarks.performance.clustered import Clustered
from gtp_benchmarks.performance.cost_model import MeasuredSelection, Point
from gtp_benchmarks.performance.measuring import Stopwatch, release_free_memory
from gtp_benchmarks.performance.memory_limit import MappedStore, limit_memory
from gtp_benchmarks.performance.selection import RIDGE, PeakMemory, judge, problem, selector
from gtp_exp.distributed import ALONE, SENT, connect
from gtp_exp.gradients.store import GradientStore
from gtp_exp.launch.launcher import Device, Launch
from gtp_exp.selection import gtp as gtp_module
from gtp_exp.selection.atoms.matrix import BlockAtoms
from gtp_exp.selection.base import Selection, SelectionProblem
from gtp_exp.selection.gtp import GTP, Regularisation

STREAMED = {"memory_gib": 0.0, "regularisation": Regularisation.FIXED, "ridge": RIDGE}


def pool_of(point: Point) -> list[Clustered]:
    """Return the clustered pool of a point, one per checkpoint."""
    return [Clustered(point.n, point.dim, seed=0, checkpoint=t) for t in range(point.checkpoints)]


def posed(store: GradientStore, point: Point) -> SelectionProblem:
    """Return the selection problem of a point over a stored pool."""
    return problem(store, [one.target_rows() for one in pool_of(point)], point.wanted)


def rank_environments(count: int) -> list[dict[str, str]]:
    """Return the environment of each of so many CPU processes of one thread that connect to each other; one
    alone needs nothing to connect by."""
    common = Launch(device=Device.CPU, threads=1, num_processes=count).environment()
    if count == 1:
        return [common]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    size = str(count)
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gives in each of several connected processes of one thread, started for it.

    They are forked from one that has the imports, so they begin at once and equal.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = []
    for environment in rank_environments(count):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(sender, environment, count, work, arguments))
        process.start()
        sender.close()
        started.append((process, receiver))
    try:
        return [receiver.recv() for _, receiver in started]
    finally:
        for process, _ in started:
            process.join(5)
            process.kill()  # one that waits for another that failed


def _answer(
    sender: Connection, environment: Mapping[str, str], count: int, work: Callable, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's own holds a semaphore, which would be left behind at the end
    processes = connect(count, torch.device("cpu")) if count > 1 else ALONE
    sender.send(work(processes, *arguments))
    processes.barrier()
    os._exit(0)  # an interpreter that shuts down may find gloo's threads at work


def measure_in_process(
    processes: Any, folder: Path, point: Point, settings: Mapping[str, Any], repeats: int
) -> MeasuredSelection:
    """Return the quickest of some repeats. Each of its processes measures itself."""
    store = GradientStore.open(folder)
    asked = replace(posed(store, point), processes=processes)
    gtp = selector(**{**STREAMED, **settings})
    trials: list[tuple[float, float, Stopwatch, Selection]] = []
    release_free_memory()
    with PeakMemory() as memory:
        for _ in range(repeats):
            SENT.clear()
            processes.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            with Stopwatch(
                correlate_own=BlockAtoms, rows=BlockAtoms, build_atoms=gtp_module, refit=gtp_module
            ) as watch:
                selection = gtp.select(asked)
            trials.append((time.process_time() - cpu, time.perf_counter() - wall, watch, selection))
    cpu, wall, watch, selection = min(trials, key=lambda trial: trial[0])
    residual, clean = judged(store, point, selection)
    return MeasuredSelection(
        point=point,
        cpu=cpu,
        wall=wall,
        scanning=watch.seconds["build_atoms"],
        passing=watch.seconds["correlate_own"],
        fetching=watch.seconds["rows"],
        refitting=watch.seconds["refit"],
        passes=watch.calls["correlate_own"],
        rounds=len(selection.diagnostics["rows_by_round"]),
        peak=int(memory.peak_gib * 2**30),
        sent=SENT["numbers"],
        disk=store.nbytes,
        residual=residual,
        clean=clean,
    )


def measure_point(folder: Path, point: Point, repeats: int, **settings: Any) -> MeasuredSelection:
    """Of the process that took most; its memory is that of the one that held most."""
    measured = in_processes(point.processes, measure_in_process, folder, point, settings, repeats)
    return replace(max(measured, key=lambda one: one.cpu), peak=max(one.peak for one in measured))


def judged(store: GradientStore, point: Point, selection: Selection) -> tuple[float, float]:
    """Return the distances of the choice to the observed and to the clean target, as `selection.judge`
    defines them."""
    stored = [store.features(t, "sgd") for t in range(point.checkpoints)]
    pool = pool_of(point)

    def atoms(index: torch.Tensor) -> torch.Tensor:
        parts = [torch.nn.functional.normalize(rows.rows(index).float(), dim=1) for rows in stored]
        return torch.cat(parts, 1)

    observed = torch.cat([one.target_rows().double().mean(0) for one in pool])
    clean = torch.cat([one.clean() for one in pool])
    return judge(atoms, selection.indices, selection.weights, observed, clean)[:2]


def under_a_limit(_: Any, folder: Path, point: Point, limit: int) -> dict[str, Any]:
    """Select under a limit of memory. limit: bytes that may be allocated once the store is mapped."""
    asked = posed(MappedStore.mapped(folder), point)
    streamed, held = (selector(**{**STREAMED, "memory_gib": gib}) for gib in (0.0, 1e6))
    release_free_memory()
    with PeakMemory() as memory:
        limit_memory(limit)
        indices = streamed.select(asked).indices.tolist()
    return {"indices": indices, "peak": int(memory.peak_gib * 2**30), "held": _fails(held, asked)}


def _fails(gtp: GTP, asked: SelectionProblem) -> bool:
    try:
        gtp.select(asked)
    except (MemoryError, RuntimeError):
        return True
    return False


def without_a_limit(_: Any, folder: Path, point: Point) -> list[int]:
    """Select as `under_a_limit` does, without a limit, and return the indices."""
    return selector(**STREAMED).select(posed(GradientStore.open(folder), point)).indices.tolist()
