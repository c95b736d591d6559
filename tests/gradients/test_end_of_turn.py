"""The gradients of an answer and of its end of turn, apart and weighed together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import make_examples, make_trajectory, small
from test_collect import SETTINGS

from gtp_exp.data.examples import IGNORE
from gtp_exp.errors import UserError
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.end_of_turn import (
    WeighedEndOfTurn,
    check_weight,
    content_of,
    end_of,
    shares,
)
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.gradients.weight import Balance
from gtp_exp.model.loss import Reduction

REDUCTIONS = list(Reduction)


def marked(row):
    """Return a row whose last token is its end of turn, behind an answer of what else carries loss."""
    first = next(i for i, label in enumerate(row.labels) if label != IGNORE)
    return replace(row, answers=((first, len(row.labels) - 1),))


@pytest.fixture(scope="module")
def rows():
    return tuple(marked(row) for row in make_examples(12) if sum(x != IGNORE for x in row.labels[1:]) > 1)


@pytest.fixture(scope="module", params=REDUCTIONS, ids=lambda reduction: reduction.value)
def stores(request, rows, tmp_path_factory):
    """Stores of the whole rows, of their content, and of their ends."""
    model = small(r=4)
    trajectory = make_trajectory(model, tmp_path_factory.mktemp("trajectory"))
    settings = replace(SETTINGS, reduction=request.param)
    parts = {"whole": rows, "content": content_of(rows), "end": end_of(rows)}
    made = {
        name: collect(model, part, trajectory, tmp_path_factory.mktemp(name), settings)
        for name, part in parts.items()
    }
    return made | {"rows": rows, "reduction": request.param}


def weighed(stores, weight):
    end = None if weight == 0 else stores["end"]
    balanced = isinstance(weight, Balance)
    factors = None if balanced else shares(stores["rows"], stores["reduction"], weight)
    return WeighedEndOfTurn(stores["content"], end, factors)


def matrix(features, checkpoint, direction="sgd"):
    return features.features(checkpoint, direction).rows(torch.arange(features.n)).float()


def test_the_parts_of_a_row_add_up_to_its_gradient(stores):
    for t in range(len(stores["whole"].learning_rates)):
        whole, together = matrix(stores["whole"], t), matrix(weighed(stores, 1.0), t)
        assert torch.allclose(together, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_an_end_of_turn_counts_as_so_many_other_tokens(stores, weight):
    content, end = matrix(stores["content"], 0), matrix(stores["end"], 0)
    if stores["reduction"] is Reduction.SUM:
        expected = content + weight * end
    else:
        n = torch.tensor([row.n_completion_tokens - 1.0 for row in stores["rows"]])[:, None]
        expected = (n * content + weight * end) / (n + weight)
    assert torch.allclose(matrix(weighed(stores, weight), 0), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, matrix(stores["whole"], 0), rtol=1e-2)


def test_without_the_end_of_turn_a_row_is_as_if_it_had_none_in_every_direction(stores):
    content = weighed(stores, 0.0)
    assert content.directions == ("sgd", "adam", "less")
    assert torch.equal(matrix(content, 1, "less"), matrix(stores["content"], 1, "less"))
    assert weighed(stores, 0.5).directions == ("sgd",)


def test_balanced_parts_have_equal_shares_in_the_mean(stores):
    balanced = matrix(weighed(stores, Balance.BALANCED), 0)
    content, end = (
        torch.nn.functional.normalize(matrix(stores[name], 0), dim=1) for name in ("content", "end")
    )
    content, end = content / content.mean(0).norm(), end / end.mean(0).norm()
    assert torch.allclose(balanced, (content + end) / 2, atol=1e-5)
    assert float(content.mean(0).norm()) == pytest.approx(1) == float(end.mean(0).norm())


def test_balanced_parts_do_not_depend_on_how_short_gradients_are():
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows *= torch.logspace(-16, 0, 5, base=2)[:, None]
    whole, short = (MemoryFeatures(({"sgd": scale * rows},), (1.0,)) for scale in (1.0, 2.0**-46))
    expected = matrix(WeighedEndOfTurn(whole, whole, None), 0)
    assert torch.equal(matrix(WeighedEndOfTurn(short, short, None), 0), expected)


def test_every_label_is_in_one_part(rows):
    for row, content, end in zip(rows, content_of(rows), end_of(rows), strict=True):
        pairs = list(zip(content.labels, end.labels, strict=True))
        assert [max(pair) for pair in pairs] == list(row.labels)
        assert all(IGNORE in pair for pair in pairs) and end.labels[-1] != IGNORE


def test_a_row_without_an_end_of_turn_is_named(rows):
    cut = replace(rows[1], answers=((rows[1].answers[0][0], len(rows[1].labels)),))
    with pytest.raises(UserError, match=f"target row '{cut.id}' has no end of turn to weigh apart"):
        end_of([rows[0], cut])
    assert content_of([cut])[0].labels == cut.labels


@pytest.mark.parametrize(
    ("weight", "direction", "named"),
    [
        (-0.5, "sgd", "must be 0 or more"),
        (0.5, "adam", "set it to sgd"),
        (Balance.BALANCED, "less", "balanced"),
    ],
)
def test_a_weight_that_cannot_be_used_is_refused(weight, direction, named):
    with pytest.raises(UserError, match=named):
        check_weight(weight, direction)


@pytest.mark.parametrize(("weight", "direction"), [(0.0, "less"), (1.0, "adam"), (0.5, "sgd")])
def test_weights_that_can_be_used_are_taken(weight, direction):
    check_weight(weight, direction)
