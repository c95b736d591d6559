"""Rows are shared among threads without a gap, in forked processes too."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch

from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms.duplicates import exact_copies, row_hash
from gtp_exp.selection.atoms.threads import in_threads


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def seen(n, least):
    rows, spans = [], []
    lock = threading.Lock()

    def work(span):
        with lock:
            rows.extend(span)
            spans.append(len(span))

    in_threads(work, n, least)
    return sorted(rows), spans


@pytest.mark.parametrize(("n", "least"), [(0, 5), (1, 5), (17, 5), (1000, 64)])
def test_every_row_is_seen_once(threads, n, least):
    rows, spans = seen(n, least)
    assert rows == list(range(n)) and len(spans) <= threads
    assert sum(span < least for span in spans) <= 1


def test_torch_works_alone_within_a_thread_and_as_before_outside(threads):
    inside = []
    in_threads(lambda span: inside.append(torch.get_num_threads()), threads, 1)
    assert inside == [1] * threads and torch.get_num_threads() == threads


def test_hashes_and_copies_do_not_depend_on_the_threads(threads):
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    rows[900:] = rows[:100]
    hashes = row_hash(rows, 3)
    alone = torch.cat([row_hash(row[None], 3) for row in rows])
    assert torch.equal(hashes, alone) and exact_copies([TensorRows(rows)], hashes).collapsed == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(threads):
    seen(100, 10)  # the parent's threads are there now, and do not come along
    child = multiprocessing.get_context("fork").Process(target=seen, args=(100, 10))
    child.start()
    child.join(20)
    if hung := child.is_alive():
        child.kill()
    assert not hung and child.exitcode == 0
