"""Write a clustered pool as a store on disk, as `collect` leaves one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gtp_benchmarks.performance.clustered import BLOCK, Clustered
from gtp_exp.gradients.store import GradientStore, StorageType, StoreWriter


def write_clustered(folder: Path, checkpoints: Sequence[Clustered], progress: bool = True) -> GradientStore:
    """Write the pool in bfloat16, direction sgd. checkpoints: of one pool, each with its own values."""
    n, dim = checkpoints[0].n, checkpoints[0].dim
    settings = {
        "rows": n,
        "dim": dim,
        "directions": ["sgd"],
        "storage": StorageType.BFLOAT16.value,
        "shard_rows": BLOCK,
        "checkpoints": [{"step": t, "learning_rate": 1.0} for t in range(len(checkpoints))],
    }
    about = {"ids": [str(i) for i in range(n)], "n_completion_tokens": [1] * n}
    writer = StoreWriter(folder, settings, about, dict)
    bar = tqdm(checkpoints, desc="writing the store", unit="checkpoint", disable=not progress)
    for t, checkpoint in enumerate(bar):
        for shard, block in enumerate(checkpoint.blocks()):
            writer.write(t, shard, {"sgd": block}, {"sgd": block.norm(dim=1)})
    return writer.finish()
