"""Put things together that are linked in pairs, directly or through others."""

from __future__ import annotations

from collections.abc import Iterable


def linked_groups(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return 0, ..., n - 1 in groups, each ascending, the groups by their first member (union-find)."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in pairs:
        parent[root(i)] = root(j)
    groups: dict[int, list[int]] = {}
    for i in range(n):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())
