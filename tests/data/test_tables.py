"""Tables read row by row: cells of text by their header, columns of values in either layout of arrow."""

from __future__ import annotations

import csv
import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.errors import UserError

ROWS = [
    {"id": "a", "prompt": "Add 2, then 3.", "completion": 'It is "5".\nReally.', "skill": "sums"},
    {"id": "b", "prompt": "é😀 \u2028", "completion": "x" * 200_000, "skill": ""},
]


def write_cells(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def load(path: Path, **settings: Any) -> Any:
    return Jsonl([str(path)], **settings).load()


def texts(pool: Any) -> list[tuple[str, str, str]]:
    return [(e.id, e.prompt, e.completion) for e in pool.examples]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_cells_may_hold_commas_quotes_and_line_breaks(tmp_path, suffix, delimiter):
    write_cells(tmp_path / f"pool{suffix}", ROWS, delimiter)
    pool = load(tmp_path / f"pool{suffix}")
    assert texts(pool) == [(r["id"], r["prompt"], r["completion"]) for r in ROWS]
    assert pool.hidden["a"] == {"skill": "sums"}
    (tmp_path / f"more{suffix}.gz").write_bytes(gzip.compress((tmp_path / f"pool{suffix}").read_bytes()))
    assert texts(load(tmp_path / f"more{suffix}.gz")) == texts(pool)


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path):
    (tmp_path / "pool.csv").write_bytes(b"\xef\xbb\xbfprompt,completion\r\n\r\nAdd 2 and 3.,5\r\n\r\n")
    assert texts(load(tmp_path / "pool.csv")) == [("pool-000001", "Add 2 and 3.", "5")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"prompt,completion\np,c\np,c,d\n",
            r"pool.csv row 2 \(it ends in line 3\) has 3 cells, the header 2",
        ),
        (b'prompt,completion\np,"c\nc"\np\n', r"pool.csv row 2 \(it ends in line 4\) has 1 cells"),
        (b"prompt,prompt\np,c\n", "two columns 'prompt'; name each once"),
        (b'prompt,completion\np,"c', "pool.csv:2 cannot be read as a table: unexpected end of data"),
        (b"prompt,completion\np,\xff\n", "pool.csv is not UTF-8 after row 0; .*iconv -f WINDOWS-1252"),
        (b"prompt;completion\np;c\n", "pool.csv has ';' between its cells, and not ','; write it with ','"),
        (b"prompt\tcompletion\np\tc\n", r"pool.csv has '\\t' .*; write it with ',', or name it .tsv"),
        (b"prompt,completion\n", "pool.csv holds no rows"),
        (b"", "pool.csv holds no rows"),
        (
            b"question,answer\nq,a\n",
            "pool.csv row 1 has the columns answer, question: they fit no known form",
        ),
    ],
)
def test_a_damaged_table_of_texts_is_named_with_its_row(tmp_path, content, told):
    (tmp_path / "pool.csv").write_bytes(content)
    with pytest.raises(UserError, match=told):
        load(tmp_path / "pool.csv")


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_layouts_of_arrow_are_read_in_order(tmp_path, kind):
    rows = [{"id": str(i), "messages": [{"role": "user", "content": f"{i}?"}]} for i in range(3000)]
    rows = [{**row, "messages": [*row["messages"], {"role": "assistant", "content": "so"}]} for row in rows]
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(tmp_path / "pool.arrow"), "wb") as sink, kind(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1700)
    assert texts(load(tmp_path / "pool.arrow")) == [(str(i), f"{i}?", "so") for i in range(3000)]


@pytest.mark.parametrize("content", [b"", b"ARROW1 not really", b"\x00" * 200, b"nothing of the kind"])
def test_a_damaged_arrow_file_is_named(tmp_path, content):
    (tmp_path / "pool.arrow").write_bytes(content)
    with pytest.raises(UserError, match="pool.arrow (cannot be read as arrow|holds no rows)"):
        load(tmp_path / "pool.arrow")


def test_what_datasets_keeps_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "kept"))
    (file,) = (tmp_path / "kept").glob("*.arrow")
    assert texts(load(file)) == [(r["id"], r["prompt"], r["completion"]) for r in ROWS]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path, kind):
    """A row would hold the last of them alone."""
    table = pa.Table.from_arrays([pa.array([text]) for text in "pcq"], ["prompt", "completion", "prompt"])
    path = tmp_path / f"pool.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=rf"pool.{kind} has two columns 'prompt'; name each once"):
        load(path)


def test_tools_that_hold_a_date_leave_the_row_out(tmp_path):
    """A table has values that JSON, in which templates print tools, has not."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tools = [[{"name": "clock", "since": datetime(2026, 1, 1)}], []]
    pq.write_table(pa.table({"messages": [turns, turns], "tools": tools}), tmp_path / "pool.parquet")
    pool = load(tmp_path / "pool.parquet")
    assert pool.skipped == {"'tools' that holds a value which JSON has not": 1} and len(pool.examples) == 1


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["state.json", "dataset_info.json", "data-00000.arrow"], "*.arrow"),  # by save_to_disk
        (["a.parquet"], "*.parquet"),
        (["README.md", "a.jsonl.gz"], "*.jsonl.gz"),
        (["a.json"], "*.json"),
        ([], "*.jsonl"),
    ],
)
def test_a_folder_is_answered_with_a_pattern_of_the_files_that_are_in_it(tmp_path, files, pattern):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(UserError) as told:
        load(tmp_path)
    assert str(told.value) == f"{tmp_path} is a folder; name its files, such as '{tmp_path}/{pattern}'"
