"""What pursuits share: which rows of all processes are the strongest."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from gtp_exp.selection.atoms.sharded import share_of
from gtp_exp.selection.solvers.pursuit import _top_of_all, top


@dataclass
class Meeting:
    """Sums over threads that stand for processes."""

    size: int
    given: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all_here = threading.Barrier(self.size)


@dataclass
class Member:
    meeting: Meeting
    rank: int

    @property
    def size(self) -> int:
        return self.meeting.size

    def all_reduce(self, tensor):
        self.meeting.given[self.rank] = tensor
        self.meeting.all_here.wait(10)
        return torch.stack([self.meeting.given[rank] for rank in range(self.size)]).sum(0)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("ties", [False, True])
def test_the_best_of_all_processes_are_those_of_one(size, k, ties):
    generator = torch.Generator().manual_seed(k)
    values = torch.randn(50, generator=generator)
    values = values.mul(2).round() if ties else values  # a third or so are not positive: no one's best
    meeting = Meeting(size)

    def of_one(rank):
        span = share_of(len(values), rank, size)
        own = torch.zeros_like(values)
        own[span.start : span.stop] = values[span.start : span.stop]
        return _top_of_all(own, k, Member(meeting, rank))

    with ThreadPoolExecutor(size) as threads:
        for strongest in threads.map(of_one, range(size)):
            assert strongest.tolist() == top(values, k).tolist()
