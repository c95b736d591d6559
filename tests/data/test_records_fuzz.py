"""Whatever stands in a file, loading gives a well-formed pool or a UserError."""

from __future__ import annotations

import json

from forms import COLUMNS, columns
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gtp_exp.data.examples import Pool
from gtp_exp.data.fields import ROLES
from gtp_exp.data.forms import Format, ReadAs
from gtp_exp.data.hashing import content_hash
from gtp_exp.data.reading import records_of
from gtp_exp.data.rows import read_pool
from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.data.values import Place
from gtp_exp.errors import UserError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=8),  # half surrogate pairs included
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([name for name in COLUMNS.values() if name] + ["id", "source", "role", "content"])
message = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text(max_size=5)}),
    st.dictionaries(st.sampled_from(["role", "content", "x"]), st.sampled_from([*ROLES, "gpt"]) | anything),
    anything,
)
row = st.one_of(
    st.fixed_dictionaries({"id": st.text(max_size=2), "messages": st.lists(message, max_size=4)}),
    st.fixed_dictionaries({"prompt": st.text(max_size=5), "completion": st.text(max_size=5) | scalars}),
    st.dictionaries(names, anything | st.lists(message, max_size=3), max_size=5),
)
formats = st.sampled_from(Format)
quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check(pool: Pool, n_rows: int) -> None:
    assert len(pool.examples) + sum(pool.skipped.values()) <= n_rows
    ids = [e.id for e in pool.examples]
    assert len(set(ids)) == len(ids)
    assert set(pool.hidden) <= set(ids)
    for e in pool.examples:
        assert e.messages[-1].role == "assistant" and e.completion.strip()
        for m in e.messages:
            assert m.role in ROLES
            m.content.encode()
    content_hash(pool)
    json.dumps(dict(pool.hidden), allow_nan=False).encode()


@given(rows=st.lists(row, max_size=4), format=formats)
@quick
def test_any_rows_give_a_pool_or_a_user_error(rows, format):
    placed = [(Place("rows", number, "row"), r) for number, r in enumerate(rows, 1)]
    try:
        records = list(records_of(placed, "rows", ReadAs(format, columns()), stem="rows"))
        pool = read_pool(records, seen={})
    except UserError as error:
        str(error)
        return
    check(pool, len(rows))
    assert len(pool.examples) + sum(pool.skipped.values()) == len(rows)


@given(lines=st.lists(st.binary(max_size=30) | row.map(lambda r: json.dumps(r).encode()), max_size=4))
@example(lines=[b"\xef\xbb\xbf"])
@example(lines=[b"[" * 5000])
@example(lines=[b'{"prompt": "p", "completion": "c", "prompt": "q"}'])
@quick
def test_any_bytes_give_a_pool_or_a_user_error(tmp_path, lines):
    for suffix in (".jsonl", ".json", ".parquet"):
        path = tmp_path / f"pool{suffix}"
        path.write_bytes(b"\n".join(lines))
        try:
            pool = Jsonl([str(path)], Format.AUTO, columns(), None, 0).load()
        except UserError:
            continue
        check(pool, b"\n".join(lines).count(b"\n") + 1 if suffix == ".jsonl" else 10_000)
        assert pool.examples


@given(rows=st.lists(row, min_size=1, max_size=3))
@quick
def test_whole_json_arrays_give_a_pool_or_a_user_error(tmp_path, rows):
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(rows))
    try:
        pool = Jsonl([str(path)], Format.AUTO, columns(), None, 0).load()
    except UserError:
        return
    check(pool, len(rows))
