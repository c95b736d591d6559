"""Let the processes of one job talk: how many there are, which one this is, broadcast, all_gather,
all_reduce.

Every process runs the same pipeline. What is done once (writing a cache entry, choosing, reporting) is done
by the main process while the others wait for it; what is divided (training, gradients, evaluation) is done by
all. torch is imported only where there are several processes.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from gtp_exp.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
SENT: Counter[str] = Counter()  # what this process has put into all_reduce: "calls", and "numbers" in all
_PATIENCE = timedelta(days=30)  # the others wait while the main process selects or another run computes


@dataclass(frozen=True)
class Processes:
    """Identifies this process among those of its job; `rank` counts from 0, which is the main process."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Return whether this is the main process, which writes and reports."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value (JSON-like) in every process."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value if self.main else None]
        distributed.broadcast_object_list(values, src=0, group=_messages())
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=_messages())
        return values

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a CPU tensor over the processes, in every process."""
        if self.size == 1:
            return tensor
        from torch import distributed

        SENT.update(calls=1, numbers=tensor.numel())
        total = tensor.clone()
        distributed.all_reduce(total, group=_messages())
        return total

    def main_first(self, make: Callable[[], T]) -> T:
        """Call `make` in every process and return its result; the main process finishes before the others
        begin."""
        if self.main:
            result = make()
            self.broadcast(None)
            return result
        self.broadcast(None)
        return make()

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        self.all_gather(None)


ALONE = Processes(0, 1)


def connect(expected: int, device: torch.device) -> Processes:
    """Return this process among those that the launcher started.

    Raises UserError unless there are `expected` of them.
    """
    if expected == 1 and "RANK" not in os.environ:
        return ALONE
    from accelerate import PartialState

    # On a CPU, Accelerate sees other processes only when it is told that the CPU is meant.
    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    if state.num_processes != expected:
        raise UserError(
            f"launch.num_processes={expected}, but {state.num_processes} joined; each would do the whole "
            "work. Check launch.config_file, and that the processes see each other"
        )
    return Processes(state.process_index, state.num_processes)


@functools.cache
def _messages() -> Any:
    """Return a process group over the CPU, so that messages need no GPU and outlast long waits."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=_PATIENCE)
