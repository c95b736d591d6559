"""A pool larger than the memory is selected from as if there were enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from under_a_limit import pose, select

from gtp_benchmarks.performance.clustered import Clustered
from gtp_benchmarks.performance.clustered_store import write_clustered

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc")
HERE = Path(__file__).resolve().parent
LIMIT = 32 << 20  # bytes that may be allocated beyond the process with its imports, the problem, and the maps
DIM = 1024
SIZES = (1, 2, 4)  # of the stores, over the limit


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return by size the store and its target rows by checkpoint."""
    folder, written = tmp_path_factory.mktemp("stores"), {}
    for size in SIZES:
        rows = size * LIMIT // (2 * DIM * torch.bfloat16.itemsize)
        checkpoints = [Clustered(rows, DIM, seed=0, checkpoint=t) for t in range(2)]
        target = {str(t): one.target_rows() for t, one in enumerate(checkpoints)}
        store = write_clustered(folder / str(size), checkpoints, progress=False)
        assert store.nbytes >= size * LIMIT
        save_file(target, folder / f"{size}.target")
        written[size] = store, target
    return written


@pytest.fixture(scope="module")
def limited(stores):
    """Return by size of the store what a process under the limit reported."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # each thread's stack counts
        "MALLOC_MMAP_THRESHOLD_": "131072",  # or glibc raises it and keeps freed memory, by chance 20 MB
    }
    running = {}
    for size, (store, _) in stores.items():
        paths = (f"{store.directory}", f"{store.directory}.target", f"{LIMIT}", f"{store.directory}.json")
        line = [sys.executable, str(HERE / "under_a_limit.py"), *paths]
        running[size] = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
    for process in running.values():
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint
    return {size: json.loads(Path(f"{stores[size][0].directory}.json").read_text()) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_a_store_as_large_as_the_limit_and_larger_is_selected_from_correctly(stores, limited, size):
    assert limited[size]["indices"] == select(pose(*stores[size]), memory_gib=0.0)


def test_the_limit_is_one_that_a_store_held_in_memory_exceeds(limited):
    for report in limited.values():
        assert "can't allocate memory" in report["held"]


def test_memory_does_not_grow_with_the_pool(stores, limited):
    """But for the few numbers per row that say where it stands: its norm, its hash, its correlation."""
    peaks = [limited[size]["peak"] for size in SIZES]
    assert max(peaks) < LIMIT
    grown = stores[4][0].nbytes - stores[1][0].nbytes
    assert peaks[-1] - peaks[0] < grown / 10
