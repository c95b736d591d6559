"""What each process of a test runs: gradients of a model whose layers are shared, against a whole copy of it.

Started with the number of processes in WORLD_SIZE; prints the largest relative error of every engine.
"""

from __future__ import annotations

import sys

import torch
from small_models import make_examples, small, trainable_parameters

from gtp_exp.distributed import connect
from gtp_exp.gradients.engines.base import gradients_of
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.launch.sharding import Sharding
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.sharding import is_sharded, local_part, shard


def main(family: str, reshard: bool) -> None:
    """Compare row by row; every process has rows of its own, and as many passes as the others."""
    processes = connect(2, torch.device("cpu"))
    whole, shared = small(family), small(family)
    shard(shared, Sharding(reshard), torch.device("cpu"), family)
    assert is_sharded(shared) and not is_sharded(whole)
    kept = sum(local_part(p).numel() for p in shared.parameters())
    assert kept < 0.9 * sum(p.numel() for p in whole.parameters())
    own = make_examples(12)[processes.rank :: processes.size]
    for kind in (Engine.AUTOGRAD, Engine.HOOKS, Engine.PACKED):
        engine = make_engine(
            kind, shared, trainable_parameters(shared), reduction=Reduction.MEAN, kernel=LinearKernel.DEFAULT
        )
        errors = []
        for batch in (own[:4], own[4:]):
            for example, found in gradients_of(engine, batch):
                expected = reference_gradients(whole, trainable_parameters(whole), example, Reduction.MEAN)
                errors.append(relative_error(found, expected, order=float("inf")))
        print(kind.value, max(max(part) for part in processes.all_gather(errors)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "True")
