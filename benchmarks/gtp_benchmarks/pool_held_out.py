"""In-domain for any pool: some rows are taken out before anything is selected; their answers are the test.

Which rows is decided by a hash of their questions, so rows that ask the same, copies above all, stay
together, in the test or in the pool, whatever system prompt or earlier turn comes first. The order of the
pool, ids and files do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.data.examples import Example, Pool
from gtp_exp.data.questions import drawn_groups
from gtp_exp.errors import UserError

NAME = "pool_held_out"


@dataclass(frozen=True)
class PoolHeldOut:
    """Takes some rows out of the pool as test rows, chosen by a hash of their prompts."""

    test_rows: int = 1000  # at most; a group of rows with one prompt is not cut
    seed: int = 0  # another one holds out other rows

    def __post_init__(self) -> None:
        if self.test_rows < 1:
            raise UserError(f"benchmark.test_rows={self.test_rows} leaves nothing to test on; use 500 or so")

    def split(self, pool: Pool) -> tuple[Pool, HeldOutRows]:
        """Return the pool without the test rows, and what is tested. Raises UserError if less than half of it
        is left."""
        n = len(pool.examples)
        if self.test_rows > n // 2:
            raise UserError(
                f"benchmark.test_rows={self.test_rows} is more than half of the pool's {n} rows; lower it"
            )
        test = held_out_rows(pool.examples, self.test_rows, self.seed)
        if not test:
            raise UserError(
                f"every prompt of the pool has more rows than benchmark.test_rows={self.test_rows}; raise it"
            )
        ids = {example.id for example in test}
        rest = Pool(
            tuple(example for example in pool.examples if example.id not in ids),
            {id: facts for id, facts in pool.hidden.items() if id not in ids},
            {**pool.skipped, "held out for the test": len(test)},
        )
        return rest, HeldOutRows(test)

    def target(self) -> None:
        """Return None: the target is the pool itself."""
        return None

    def tasks(self) -> tuple[EvalTask, ...]:
        """Raise an error: the tasks exist only after the split."""
        raise UserError("benchmark=pool_held_out has test rows only after it has split a pool")


@dataclass(frozen=True)
class HeldOutRows:
    """Holds the benchmark that a split leaves: the target is what remains of the pool."""

    rows: tuple[Example, ...]

    def target(self) -> None:
        """Return None: the target is the pool itself."""
        return None

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return one task, the held-out loss of the test rows."""
        return (EvalTask(name=NAME, metric=HELD_OUT_LOSS, config={}, docs=(), held_out=self.rows),)


def held_out_rows(examples: Sequence[Example], n: int, seed: int) -> tuple[Example, ...]:
    """Return at most n examples, those with the lowest hash of their questions; a group with one question is
    taken whole or not."""
    taken: list[Example] = []
    for group in drawn_groups(examples, seed):
        if len(taken) + len(group) <= n:
            taken += sorted((examples[i] for i in group), key=lambda example: example.id)
        if len(taken) == n:
            break
    return tuple(taken)
