"""Whatever a config value holds, building a group gives an object, or a message naming the group or key."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from options import CONF, REQUIRED, WHOLE, names, option

from gtp_exp.config import build
from gtp_exp.errors import UserError

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in WHOLE)
OPTIONS = [(group, name) for group in GROUPS for name in names(group)]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "???", "null", "true", "1e3", "../../etc/passwd", "${seed}", "${oc.env:HOME}", "\x00"]
    ),
    st.lists(st.one_of(st.integers(), st.text(max_size=5), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def node_of(group, name):
    return option(group, name, *REQUIRED.get((group, name), []))


def leaves(node, path=()):
    """Paths of all values, those of inner mappings included."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def replaced(node, path, value):
    head, *rest = path
    return {**node, head: replaced(node[head], rest, value) if rest else value}


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_any_value_is_taken_or_refused_by_name(data):
    group, name = data.draw(st.sampled_from(OPTIONS))
    node = node_of(group, name)
    path = data.draw(st.sampled_from(list(leaves(node))))
    value = data.draw(JUNK)
    try:
        build(replaced(node, path, value), group)
    except UserError as error:
        message = str(error)
        assert len(message) < 2000 and any(part in message for part in (*path, group))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_key_too_many_is_named_and_one_too_few_takes_the_classes_default(data):
    group, name = data.draw(st.sampled_from(OPTIONS))
    node = node_of(group, name)
    key = data.draw(st.one_of(st.sampled_from(sorted(node)), st.text(min_size=1, max_size=12)))
    if key in node:
        del node[key]
    else:
        node[key] = 1
    try:
        built = build(node, group)
    except UserError as error:
        assert key in str(error) or repr(key)[1:-1] in str(error)
    else:
        (field,) = [field for field in dataclasses.fields(built) if field.name == key]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert key not in node and getattr(built, key) == default
