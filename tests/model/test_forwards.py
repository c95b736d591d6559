"""Other functions in the place of modules' forward."""

from __future__ import annotations

import pytest
import torch

from gtp_exp.model.forwards import forwards_replaced


def test_one_within_another_puts_back_what_it_found():
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    own = layer(x)
    with forwards_replaced({layer: lambda x: x + 1, other: layer.forward}):
        with pytest.raises(KeyError), forwards_replaced({layer: lambda x: x + 2}):
            assert torch.equal(layer(x), x + 2)
            raise KeyError
        assert torch.equal(layer(x), x + 1) and torch.equal(other(x), own)
    assert torch.equal(layer(x), own) and "forward" not in vars(layer)
