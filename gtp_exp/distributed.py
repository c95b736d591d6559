"""The processes of one job: how many there are, which one this is, and what little they tell each other.

Every process runs the same pipeline. What is done once (writing a cache entry, choosing, reporting) is done
by the main one, while the others wait for it; what is divided (training, gradients, evaluation) is done by
all. Imports torch only where there are several.
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
SENT: Counter[str] = Counter()  # by this process, in sums over tensors: "calls" and "numbers"
_PATIENCE = timedelta(days=30)  # the others wait while the main process selects or another run computes


@dataclass(frozen=True)
class Processes:
    rank: int
    size: int

    @property
    def main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The main process's value (JSON-like), in every process."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value if self.main else None]
        distributed.broadcast_object_list(box, src=0, group=_messages())
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Every process's value in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=_messages())
        return found

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a CPU tensor over the processes, in every process."""
        if self.size == 1:
            return tensor
        from torch import distributed

        SENT.update(calls=1, numbers=tensor.numel())
        total = tensor.clone()
        distributed.all_reduce(total, group=_messages())
        return total

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` gives, in every process; the main one is through with it before the others begin."""
        if self.main:
            made = make()
            self.broadcast(None)
            return made
        self.broadcast(None)
        return make()

    def barrier(self) -> None:
        """Until every process is here."""
        self.all_gather(None)


ALONE = Processes(0, 1)


def connect(expected: int, device: torch.device) -> Processes:
    """This process among those that the launcher started, of which there must be `expected`."""
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
    """A group over the CPU, so that messages need no GPU and outlast long waits."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=_PATIENCE)
