"""Find how many tokens fit into a batch, and go on with less when memory runs out."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.engines.base import GradientEngine
from gtp_exp.model.device import out_of_memory
from gtp_exp.model.sharding import local_part

# Larger batches gain little once the matrix products are saturated: on a CPU with a thousand tokens, on a GPU
# with many more, where a small model's products are over before the next ones are asked for.
_ENOUGH_TOKENS = {"cpu": 1024}
_ENOUGH_TOKENS_ELSEWHERE = 65536
# Of the free memory; the rest is for what the probe does not see: fragmentation, logits, sketches.
_SHARE = 0.5

Result = TypeVar("Result")


def choose_token_budget(engine: GradientEngine, model: torch.nn.Module, probe: TokenizedExample) -> int:
    """Return the tokens per batch that fit in half of the free memory, or fewer where more brings nothing.

    probe: the longest example, for attention may need memory by the square of the length.
    """
    device = next(model.parameters()).device
    per_token = saved_bytes(engine, model, probe) / probe.n_tokens
    fits = int(_SHARE * free_memory(device) / max(per_token, 1))
    return max(probe.n_tokens, min(fits, _ENOUGH_TOKENS.get(device.type, _ENOUGH_TOKENS_ELSEWHERE)))


def saved_bytes(engine: GradientEngine, model: torch.nn.Module, example: TokenizedExample) -> int:
    """Return the bytes of activations that autograd keeps for one example, each storage counted once."""
    tensors = map(local_part, itertools.chain(model.parameters(), model.buffers()))
    weights = {t.untyped_storage().data_ptr() for t in tensors}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        engine.run([example], lambda name, gradients: None)
    return sum(saved.values())


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be taken on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def halving(
    batch: Sequence[TokenizedExample], run: Callable[[Sequence[TokenizedExample]], Result]
) -> list[Result]:
    """Return [run(batch)], or the results on halves of the batch when memory runs out, in order.

    Raise UserError when a single example does not fit.
    """
    try:
        return [run(batch)]
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(batch) == 1:
            raise UserError(
                f"example {batch[0].id} ({batch[0].n_tokens} tokens) does not fit in memory on its own; "
                "lower the maximum length or use a larger machine"
            ) from error
    # Outside the except block: the traceback would keep the failed batch's activations alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(f"out of memory with {len(batch)} examples in a batch; going on with halves", stacklevel=2)
    half = len(batch) // 2
    return halving(batch[:half], run) + halving(batch[half:], run)
