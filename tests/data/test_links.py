"""What pairs link stands in one group, whatever the pairs' order."""

from __future__ import annotations

import random

import networkx
import pytest

from gtp_exp.data.links import linked_groups


def test_groups_hold_what_is_linked_through_others_and_what_is_alone():
    assert linked_groups(6, [(4, 0), (5, 4), (1, 3)]) == [[0, 4, 5], [1, 3], [2]]
    assert linked_groups(0, []) == []


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_the_connected_components(seed):
    drawn = random.Random(seed)
    n = 40
    pairs = [(drawn.randrange(n), drawn.randrange(n)) for _ in range(drawn.randrange(60))]
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(n))
    expected = sorted(sorted(group) for group in networkx.connected_components(graph))
    assert linked_groups(n, pairs) == linked_groups(n, pairs[::-1]) == expected
