"""Take rows in turn while they fit into what is left."""

from __future__ import annotations

from collections.abc import Sequence


def fitting(prices: Sequence[int], capacity: int, most: int | None = None) -> list[int]:
    """Return the positions, in order, of what still fits when taken in turn; what does not is passed over.

    prices: of each in its turn, in tokens, say; all together cost at most `capacity`. most: how many may be
    taken, None for any number.
    """
    taken: list[int] = []
    cheapest = min(prices, default=0)
    for position, price in enumerate(prices):
        if capacity < cheapest or len(taken) == most:
            break
        if price <= capacity:
            taken.append(position)
            capacity -= price
    return taken
