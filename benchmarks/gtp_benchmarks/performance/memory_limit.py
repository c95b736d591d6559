"""Selection under a limit of anonymous memory, which a store that is mapped must not count against.

RLIMIT_DATA is Linux's limit of what a process may allocate. It also counts private writable maps, such as
safetensors makes of a file, though nothing is ever written to them: so the maps are made before the limit.
"""

from __future__ import annotations

import functools
import resource
from pathlib import Path

from tqdm import tqdm

from gtp_benchmarks.performance.measuring import process_memory
from gtp_exp.gradients.shards import ShardedRows
from gtp_exp.gradients.store import GradientStore


class MappedStore(GradientStore):
    """Opens a store whose maps are made once, when it is opened."""

    @classmethod
    def mapped(cls, path: Path | str) -> MappedStore:
        store = cls(Path(path), GradientStore.open(path).about)
        for checkpoint in range(len(store.learning_rates)):
            for direction in store.directions:
                store.features(checkpoint, direction)
        return store

    @functools.cache  # noqa: B019  as long as the process
    def features(self, checkpoint: int, direction: str) -> ShardedRows:  # type: ignore[override]
        rows = super().features(checkpoint, direction)
        for _ in rows.chunks(rows.shape[0]):
            pass
        return rows


def limit_memory(bytes_: int) -> None:
    """Allow this process so many bytes more than it holds now, for good."""
    tqdm.monitor_interval = 0  # a thread of every first progress bar, whose stack would count
    held = process_memory("VmData")
    if held is None:
        raise OSError("this system does not tell what a process holds")
    resource.setrlimit(resource.RLIMIT_DATA, (held + bytes_, resource.getrlimit(resource.RLIMIT_DATA)[1]))
