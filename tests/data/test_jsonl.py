"""Local files: every form reads to the same conversations, and bad input is refused or counted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from forms import chat, columns, write_lines
from pyarrow import parquet

from gtp_exp.data.examples import Message, Pool
from gtp_exp.data.forms import Format, Ids
from gtp_exp.data.sources.hub import Hub
from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.data.tables import without_folders
from gtp_exp.errors import UserError

TURN = (Message("user", "Add 2 and 3."), Message("assistant", "5"))
REAL = (
    Path(os.environ.get("GTP_EXP_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    / "pool.jsonl"
)


def load(
    *files: str,
    format: Format = Format.AUTO,
    rows: int | None = None,
    seed: int = 0,
    ids: Ids = Ids.COLUMN,
    **names: Any,
) -> Pool:
    return Jsonl(list(files), format, columns(**names), rows, seed, ids).load()


def write_arrow(path: Path, rows: list[Any], kind: Any = pa.ipc.new_stream) -> None:
    """Write rows as `datasets` keeps them, a stream, or as a file with an index at its end."""
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, kind(sink, table.schema) as writer:
        writer.write_table(table)


def refused(*files: str, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        load(*files, **settings)
    return str(error.value)


# --- forms


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Add 2 and 3."}, {"role": "assistant", "content": "5"}]},
        {"prompt": "Add 2 and 3.", "completion": "5"},
        {"instruction": "Add 2 and 3.", "input": "", "output": "5"},
        {"instruction": "Add 2 and 3.", "input": None, "output": "5"},
        {"instruction": "Add 2 and 3.", "output": "5"},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_every_form_in_every_file_type_is_the_same_conversation(tmp_path, row, suffix):
    path = tmp_path / f"pool{suffix}"
    rows = [{"id": "a", **row, "source": "hand"}]
    if suffix == ".jsonl":
        write_lines(path, *rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_arrow(path, rows)
    pool = load(str(path))
    assert pool.examples[0].id == "a"
    assert pool.examples[0].messages == TURN
    assert pool.hidden == {"a": {"source": "hand"}}


def test_alpaca_input_follows_the_instruction(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"instruction": "Sort.", "input": "b a", "output": "a b"})
    assert load(file).examples[0].prompt == "Sort.\n\nb a"


def test_columns_can_be_named_otherwise(tmp_path):
    row = {"key": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    file = write_lines(tmp_path / "a.jsonl", row)
    pool = load(file, id="key", messages="conversations", role="from", content="value")
    assert pool.examples[0].id == "7"
    assert pool.examples[0].messages == (Message("user", "Hi"), Message("assistant", "Hello"))


def test_files_of_different_forms_make_one_pool_in_the_given_order(tmp_path):
    b = write_lines(
        tmp_path / "b.jsonl", {"prompt": "p", "completion": "c"}, {"prompt": "q", "completion": "d"}
    )
    write_lines(tmp_path / "a.jsonl", chat("x", "Hi", "Hello"))
    pool = load(b, str(tmp_path / "a*.jsonl"))
    assert [e.id for e in pool.examples] == ["b-000001", "b-000002", "x"]


def test_made_up_ids_stay_unique_when_file_names_repeat(tmp_path):
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(write_lines(tmp_path / folder / "train.jsonl", {"prompt": "p", "completion": "c"}))
    assert [e.id for e in load(*files).examples] == ["train-1-000001", "train-2-000001"]


def test_hidden_facts_are_the_other_scalars(tmp_path):
    facts = {"source": "s", "hard": True, "score": 0.5, "n": 3, "none": None, "tags": ["a"], "more": {"b": 1}}
    file = write_lines(tmp_path / "a.jsonl", chat("x", "Hi", "Hello", **facts), chat("y", "Hi", "Hello"))
    assert load(file).hidden == {"x": {"source": "s", "hard": True, "score": 0.5, "n": 3}}


def test_numbers_that_json_cannot_write_are_no_facts(tmp_path):
    line = json.dumps(chat("x", "Hi", "Hello", n=1, big=0)).replace('"big": 0', '"big": 1e999')
    assert load(write_lines(tmp_path / "a.jsonl", line)).hidden == {"x": {"n": 1}}
    table = pa.table({"id": ["x"], "prompt": ["p"], "completion": ["c"], "score": [float("nan")]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load(str(tmp_path / "a.parquet")).hidden == {}


def test_unusual_characters_do_not_break_a_line(tmp_path):
    # U+2028, U+0085 and a form feed separate lines for str.splitlines, not for JSON lines
    text = "one\u2028two\u0085three\x0cé😀"
    file = write_lines(tmp_path / "a.jsonl", chat("x", text, text), "", "   ", chat("y", "Hi", "Hello"))
    pool = load(file)
    assert [e.id for e in pool.examples] == ["x", "y"]
    assert pool.examples[0].completion == text


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    row = json.dumps(chat("x", "Hi", "Hello")).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + row + b"\r\n")
    assert len(load(str(tmp_path / "a.jsonl")).examples) == 1


def test_a_huge_row_survives(tmp_path):
    text = "word " * 1_000_000
    assert load(write_lines(tmp_path / "a.jsonl", chat("x", text, text))).examples[0].completion == text


# --- subsets


def test_a_subset_is_seeded_uniform_and_in_file_order(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", *(chat(f"{i:02d}", "Hi", f"{i}", n=i) for i in range(20)))
    draws = [tuple(e.id for e in load(file, rows=5, seed=s).examples) for s in range(400)]
    assert draws[0] == tuple(e.id for e in load(file, rows=5, seed=0).examples)
    assert all(draw == tuple(sorted(draw)) and len(set(draw)) == 5 for draw in draws)
    counts = [sum(f"{i:02d}" in draw for draw in draws) for i in range(20)]
    # binomial(400, 1/4): mean 100, standard deviation 8.7
    assert min(counts) > 65 and max(counts) < 135
    subset = load(file, rows=5, seed=0)
    assert set(subset.hidden) == {e.id for e in subset.examples}


def test_a_subset_above_the_pool_is_refused_with_both_numbers(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", chat("x", "Hi", "Hello"), chat("y", "Hi", ""))
    message = refused(file, rows=2)
    assert "rows=2" in message and "the 1 usable rows" in message and "empty completion" in message


@pytest.mark.parametrize("rows", [0, -1])
def test_a_subset_of_nothing_is_refused(rows):
    with pytest.raises(UserError, match=f"dataset.rows={rows}"):
        Jsonl(["a.jsonl"], Format.AUTO, columns(), rows, 0)


# --- rows that are skipped and counted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat("x", "Hi", ""), "empty completion"),
        (chat("x", "Hi", " \n"), "empty completion"),
        ({"id": "x", "messages": [{"role": "assistant", "content": None}]}, "empty completion"),
        ({"id": "x", "messages": [{"role": "system", "content": "Be kind."}]}, "no assistant turn"),
        ({"id": "x", "messages": []}, "no assistant turn"),
        (chat("x", "Hi"), "no assistant turn"),
        (chat("x", "Hi", "Hello", "Bye"), "last turn is not the assistant's"),
    ],
)
def test_a_row_without_a_completion_is_skipped_and_counted(tmp_path, row, reason):
    pool = load(write_lines(tmp_path / "a.jsonl", row, chat("y", "Hi", "Hello"), {**row, "id": "z"}))
    assert [e.id for e in pool.examples] == ["y"]
    assert pool.skipped == {reason: 2}


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_completion_column_is_skipped_and_counted(tmp_path, empty):
    rows = [{"prompt": "p", "completion": empty}, {"prompt": "p", "completion": "c"}]
    pool = load(write_lines(tmp_path / "a.jsonl", *rows))
    assert (len(pool.examples), pool.skipped) == (1, {"empty completion": 1})


def test_an_empty_pool_is_refused_and_says_why(tmp_path):
    message = refused(write_lines(tmp_path / "a.jsonl", chat("x", "Hi", "")))
    assert "no usable row" in message and "1 empty completion" in message


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "holds no rows" in refused(str(tmp_path / "a.jsonl"))


# --- malformed rows: the message names file and line


GOOD = chat("good", "Hi", "Hello")
MALFORMED: list[tuple[Any, str]] = [
    ("{not json", "is not JSON"),
    ('{"id": "x"', "is not JSON"),
    ('{"id": "x', "is not JSON: Invalid control character at character 10"),
    ('{"id": NaN}', "NaN is no JSON value"),
    ('{"id": "x", "id": "y"}', "'id' occurs twice in one object"),
    (b'{"id": "\xff"}', "is not UTF-8: byte 0xff at position 8"),
    (b'{"id": "caf\xe9"}', "naming the encoding that it has: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"),
    ("[1, 2]", "must hold one JSON object, found list"),
    ("3", "must hold one JSON object, found int"),
    ('{"id": ' + "[" * 100_000, "is nested too deeply"),
    ('{"id": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply"),
    ('{"id": ' + "9" * 5000 + "}", "is not JSON"),
    (chat("", "Hi", "Hello"), "empty 'id'"),
    ({"messages": GOOD["messages"]}, "has no 'id'"),
    ({"id": True, "messages": GOOD["messages"]}, "'id' must be text, found the boolean true"),
    ({"id": "x", "text": "Hi"}, "has no 'messages', which other rows of the file have; it has id, text"),
    ({"id": "x", "messages": "Hi"}, "must be a list of messages, found a text"),
    ({"id": "x", "messages": {"role": "user"}}, "must be a list of messages, found an object"),
    ({"id": "x", "messages": ["Hi"]}, "message 1 must be an object with 'role' and 'content', found a text"),
    ({"id": "x", "messages": [{"role": "user"}]}, "message 1 has no 'content'; it has role"),
    (
        {"id": "x", "messages": [{"role": "critic", "content": "x"}]},
        "message 1 has the role 'critic'; known roles are system, user, assistant, tool, human, gpt",
    ),
    ({"id": "x", "messages": [{"role": None, "content": "x"}]}, "message 1 has the role null"),
    ({"id": "x", "messages": [{"role": ["user"], "content": "x"}]}, "message 1 has the role a list of 1"),
    (chat("x", "Hi", True), "'content of message 2' must be text, found the boolean true"),
    (chat("x", "Hi", 3), "'content of message 2' must be text, found the number 3"),
    (chat("x", None, "Hello"), "'content of message 1' must be text, found null"),
    (chat("x", {"type": "text", "text": "Hi"}, "Hello"), "must be text, found an object"),
    ('{"id": "x", "messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
    ('{"id": "\\ud800", "messages": []}', "half a surrogate pair"),
]


@pytest.mark.parametrize(("row", "problem"), MALFORMED, ids=[problem[:40] for _, problem in MALFORMED])
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path, row, problem):
    file = write_lines(tmp_path / "pool.jsonl", GOOD, "", row, chat("later", "Hi", "Hello"))
    message = refused(file)
    assert f"{file}:3" in message
    assert problem in message


def test_text_columns_refuse_numbers(tmp_path):
    for name, value in (("prompt", 3), ("completion", False), ("prompt", None)):
        row = {"prompt": "p", "completion": "c", name: value}
        file = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c"}, row)
        assert f"{file}:2: '{name}' must be text, found" in refused(file)
    row = {"instruction": "i", "input": 3, "output": "o"}
    assert "'input' must be text, found the number 3" in refused(write_lines(tmp_path / "b.jsonl", row))


def test_duplicate_ids_are_refused_with_both_places(tmp_path):
    a = write_lines(tmp_path / "a.jsonl", chat("x", "Hi", ""), chat("y", "Hi", "Hello"))
    b = write_lines(tmp_path / "b.jsonl", chat("z", "Hi", "Hello"), chat("x", "Hi", "Hello"))
    message = refused(a, b)
    assert "id 'x' occurs twice" in message and f"{a}:1" in message and f"{b}:2" in message


def test_files_that_each_count_from_0_are_told_apart_by_their_names(tmp_path):
    a = write_lines(tmp_path / "a.jsonl", chat("0", "Hi", "Hello"), chat("1", "Hi", "Hello"))
    b = write_lines(tmp_path / "b.jsonl", {**chat("0", "Bye", "See you"), "id": 0})
    assert "set dataset.ids=file to put the file's name before them" in refused(a, b)
    pool = load(a, b, ids=Ids.FILE)
    assert [example.id for example in pool.examples] == ["a-0", "a-1", "b-0"]


def test_ids_that_repeat_within_a_file_can_be_passed_over(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", chat("x", "Hi", "Hello"), chat("x", "And?", "Nothing"))
    message = refused(file)
    assert "dataset.ids=number" in message and "dataset.ids=file" not in message
    assert "occurs twice" in refused(file, ids=Ids.FILE)
    pool = load(file, ids=Ids.NUMBER)
    assert [example.id for example in pool.examples] == ["a-000001", "a-000002"]
    assert pool.hidden["a-000002"] == {"id": "x"}  # still there, for reports
    assert load(file, ids=Ids.NUMBER, id="no_such_column").examples == pool.examples


def test_an_id_that_the_first_row_has_not_is_refused_where_it_would_be_passed_over(tmp_path):
    without = {key: value for key, value in chat("x", "Hi", "Hello").items() if key != "id"}
    file = write_lines(tmp_path / "a.jsonl", without, chat("x", "And?", "Nothing"))
    message = refused(file)
    assert f"{file}:2 has an 'id', which the file's first row has not" in message
    assert [example.id for example in load(file, ids=Ids.NUMBER).examples] == ["a-000001", "a-000002"]
    nulls = write_lines(tmp_path / "b.jsonl", without, {**without, "id": None})
    assert len(load(nulls).examples) == 2


def test_a_number_and_its_text_are_the_same_id(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {**GOOD, "id": 1}, {**GOOD, "id": "1"})
    assert "id '1' occurs twice" in refused(file)


# --- columns


def test_unknown_columns_are_named_with_those_that_are_known(tmp_path):
    message = refused(write_lines(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}))
    for part in (
        "answer, question",
        "messages",
        "prompt+completion",
        "instruction+output",
        "dataset.columns",
    ):
        assert part in message


def test_a_named_column_that_is_not_there_is_refused(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "answer": "a"})
    message = refused(file, format=Format.PROMPT_COMPLETION, completion="reply")
    assert "no column 'reply'" in message and "it has answer, prompt" in message
    assert "no column 'key' (dataset.columns.id)" in refused(file, completion="answer", id="key")


def test_columns_of_two_forms_must_be_told_apart(tmp_path):
    row = {**GOOD, "prompt": "p", "completion": "c"}
    file = write_lines(tmp_path / "a.jsonl", row)
    assert "fit several forms" in refused(file)
    assert load(file, format=Format.PROMPT_COMPLETION).examples[0].completion == "c"
    assert load(file, format=Format.MESSAGES).examples[0].completion == "Hello"


# --- files


def test_a_missing_file_is_named(tmp_path):
    for pattern in (str(tmp_path / "none.jsonl"), str(tmp_path / "*.jsonl")):
        assert f"no such file: {pattern}" in refused(pattern)


def test_no_files_at_all_are_refused():
    with pytest.raises(UserError, match="dataset.files is empty"):
        Jsonl([], Format.AUTO, columns(), None, 0)


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "pool.jsonl").mkdir()
    assert "is a folder" in refused(str(tmp_path / "pool.jsonl"))


def test_an_unknown_file_type_is_refused(tmp_path):
    (tmp_path / "pool.xml").write_text("id,prompt\n")
    assert ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow" in refused(str(tmp_path / "pool.xml"))


def test_a_file_named_twice_is_refused(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c"})
    assert "is named 2 times" in refused(file, str(tmp_path / "*.jsonl"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", GOOD)
    os.chmod(file, 0)
    assert f"{file} cannot be read" in refused(file)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", b"\x00" * 200])
def test_a_damaged_parquet_file_is_named(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    assert "cannot be read as parquet" in refused(str(tmp_path / "a.parquet"))


def test_parquet_rows_are_named_by_number(tmp_path):
    parquet.write_table(pa.table({"prompt": ["p", "p"], "completion": [1, 2]}), tmp_path / "a.parquet")
    assert "a.parquet row 1: 'completion' must be text, found the number 1" in refused(
        str(tmp_path / "a.parquet")
    )


@pytest.mark.parametrize("content", ["[{}", "[1]", '[{"prompt": "p", "completion": 1}]'])
def test_a_damaged_json_array_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert "a.json" in refused(str(tmp_path / "a.json"))


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json"])
def test_a_packed_file_gives_the_rows_of_the_file(tmp_path, kind, packed):
    rows = [{"prompt": f"Add {i} and 3.", "completion": f"{i + 3}"} for i in range(2000)]
    text = json.dumps(rows) if kind == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    plain, file = tmp_path / f"pool{kind}", tmp_path / f"pool{kind}{packed}"
    plain.write_text(text)
    file.write_bytes(PACK[packed](text.encode()))
    assert load(str(file)) == load(str(plain)) == Hub(path=str(file)).load()
    assert load(str(file)).examples[0].id == "pool-000001"


@pytest.mark.parametrize("packed", PACK)
def test_a_packed_file_that_is_cut_short_is_named(tmp_path, packed):
    whole = PACK[packed](os.urandom(9000).hex().encode())
    (tmp_path / f"pool.jsonl{packed}").write_bytes(whole[: len(whole) // 2])
    message = refused(str(tmp_path / f"pool.jsonl{packed}"))
    assert f"pool.jsonl{packed} is cut short or damaged" in message or "is not JSON" in message


def test_a_file_that_only_claims_to_be_packed_is_named(tmp_path):
    (tmp_path / "pool.jsonl.gz").write_text(json.dumps(GOOD))
    assert "pool.jsonl.gz cannot be read: Not a gzipped file" in refused(str(tmp_path / "pool.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("pool.arrow.gz", "is packed: unpack it"),
        ("pool.parquet.gz", "is packed: unpack it"),
        ("pool.zip", "is packed: unpack it"),
        ("pool.xlsx", "is none of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, nor packed as .gz"),
        ("pool", "is none of"),
    ],
)
def test_another_kind_of_file_is_refused_with_its_remedy(tmp_path, name, remedy):
    (tmp_path / name).write_text("prompt,completion\nAdd 2 and 3.,5\n")
    message = refused(str(tmp_path / name))
    assert name in message and remedy in message
    with pytest.raises(UserError) as error:
        Hub(path=str(tmp_path / name)).load()
    assert remedy in str(error.value)


def test_a_folder_with_a_csv_file_is_read_by_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "pool.csv").write_text("prompt,completion\nAdd 2 and 3.,five\n")
    (example,) = Hub(path=str(tmp_path / "folder")).load().examples
    assert example.completion == "five"


def test_a_zst_file_is_read_or_refused_with_what_to_install(tmp_path):
    file = tmp_path / "pool.jsonl.zst"
    try:
        from zstandard import ZstdCompressor
    except ImportError:
        file.write_bytes(b"")
        assert "pip install zstandard" in refused(str(file))
        return
    file.write_bytes(ZstdCompressor().compress(json.dumps(GOOD).encode()))
    assert len(load(str(file)).examples) == 1


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A home folder, and the working directory in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "work")
    return tmp_path / "home"


@pytest.mark.parametrize("given", ["pool.jsonl", "./pool.jsonl", "../work/pool.jsonl", "~/work/pool.jsonl"])
def test_messages_name_a_file_as_it_was_given_and_no_folder_beyond(at_home, given):
    """A message ends up in the run's record, and on a page that is shared."""
    shown = given.removeprefix("./")
    said = [refused(given)]
    write_lines(at_home / "work" / "pool.jsonl", GOOD, "{not json")
    said.append(refused(given))
    assert shown in said[0] and f"{shown}:2" in said[1]
    said.append(refused(given, rows=2))
    said.append(refused(given, given))
    (at_home / "work" / "pool.jsonl").unlink()
    (at_home / "work" / "pool.jsonl").mkdir()
    said.append(refused(given))
    assert all(shown in message and str(at_home) not in message for message in said)


def test_a_damaged_parquet_file_is_named_as_it_was_given(at_home):
    (at_home / "a.parquet").write_bytes(b"PAR1 not really")
    message = refused("~/a.parquet")
    assert message.startswith("~/a.parquet cannot be read") and str(at_home) not in message


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("No data at /home/me/a/b.json", "No data at …/b.json"),
        ("[Errno 2] No such file: '/home/me/x.csv'", "[Errno 2] No such file: '…/x.csv'"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("data/a.jsonl and/or 3/4 of ~/b/c", "data/a.jsonl and/or 3/4 of ~/b/c"),
    ],
)
def test_words_of_a_library_lose_the_folders_of_this_machine(text, left):
    assert without_folders(text) == left


@pytest.mark.skipif(not REAL.exists(), reason="the optional real data is not there")
def test_the_real_pool_loads_whole():
    pool = load(str(REAL))
    assert len(pool.examples) == 13_500
    assert pool.skipped == {"empty completion": 280}
    assert set(next(iter(pool.hidden.values()))) == {"source", "task"}
