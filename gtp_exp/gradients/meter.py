"""Show the progress of a collection: examples and tokens per second, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from gtp_exp.data.examples import TokenizedExample


class Meter:
    """Counts in tokens, for they and not the examples take the time; shows both rates."""

    def __init__(self, label: str, n_tokens: int) -> None:
        """Start at zero. label: empty for no display. n_tokens: for this process and others together."""
        self._bar = tqdm(
            total=n_tokens,
            desc=label,
            unit="tok",
            unit_scale=True,
            disable=not label,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        self._started, self._examples = time.monotonic(), 0

    def done(self, batch: Sequence[TokenizedExample]) -> None:
        """Count a batch of examples as done."""
        self._examples += len(batch)
        rate = self._examples / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{rate:.2f} examples/s", refresh=False)
        self._bar.update(sum(e.n_tokens for e in batch))

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
