"""Multiply half-width or narrower rows with one float32 column in one read, by a kernel of torch.compile.

Widening a block of rows and multiplying it afterwards moves every number through the cache twice, and costs
more than reading half the bytes saves. The fused kernel reads each row once, widens in registers and is twice
as fast as a float32 pass. Making it takes a C++ compiler and some 15 s, so only large passes ask for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch

from gtp_exp.errors import first_line

log = logging.getLogger(__name__)

WORTH = 1 << 30  # numbers read in a pass from which the kernel soon earns what making it costs
LEAST_ROWS = 1024  # fewer are padded: the kernel is made for many rows, and sums each the same way

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def widen_and_dot(dim: int, dtype: torch.dtype) -> Kernel | None:
    """Return a kernel that multiplies rows [c, dim] of `dtype` with a column float32 [dim] to float32 [c].

    Returns None where it cannot be made here. A row's result depends neither on the rows beside it nor on
    the number of threads.
    """
    kernel = _compiled(dim, dtype, torch.get_num_threads())
    if kernel is None:
        return None

    def padded(rows: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        if len(rows) >= LEAST_ROWS:
            return kernel(rows, column)
        wide = torch.zeros(LEAST_ROWS, dim, dtype=dtype)
        wide[: len(rows)] = rows
        return kernel(wide, column)[: len(rows)]

    return padded


@functools.cache
def _compiled(dim: int, dtype: torch.dtype, threads: int) -> Kernel | None:
    """Return the kernel for many rows, once its result has been compared with a plain product."""
    from torch._inductor import config as inductor

    def formula(rows: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return (rows.float() * column).sum(1)

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * LEAST_ROWS, dim, generator=generator).to(dtype)
    column = torch.randn(dim, generator=generator)
    try:
        with inductor.patch(compile_threads=1):  # in this process: no helpers that could outlive it
            kernel = torch.compile(formula, dynamic=True, fullgraph=True)
            product = kernel(rows, column)
    except Exception as error:  # no compiler, no Python headers, no writable folder for its cache ...
        log.info("no fused kernel for %s rows (%s); widening them block by block", dtype, first_line(error))
        return None
    expected = rows.float() @ column
    if (product - expected).abs().max() > 1e-5 * expected.abs().max():
        log.warning("torch.compile's kernel for %s rows is wrong here; widening them block by block", dtype)
        return None
    return kernel
