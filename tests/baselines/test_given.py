"""Choices that were made elsewhere: lists of ids with or without weights, and columns of scores."""

from __future__ import annotations

import csv
import gzip
import json
import shutil

import pytest
import torch

from conftest import conversation
from gtp_baselines.given import Given, Order, read_list
from gtp_baselines.random import Random
from gtp_exp.config import describe
from gtp_exp.data.examples import Pool, TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.records.selected import export, selected_rows
from gtp_exp.selection.base import Budget, Selection, SelectionProblem, Unit, choose_rows
from gtp_exp.selection.subset import some_candidates

N = 10
ROWS = [conversation(i, f"What is {i}?", f"It is {i}.") for i in range(N)]
IDS = ["row-7", "row-0", "row-4", "row-9"]
ALL = Budget(Unit.ALL, 1)


def problem(budget=ALL, scores=None, rows=ROWS, seed=0):
    return SelectionProblem(
        candidates=rows,
        n_tokens=torch.full((len(rows),), 10),
        n_completion_tokens=torch.full((len(rows),), 5),
        target=None,
        budget=budget,
        seed=seed,
        scores={name: torch.tensor(values, dtype=torch.float64) for name, values in (scores or {}).items()},
    )


def ids(selection):
    return [f"row-{i}" for i in selection.indices.tolist()]


def write(path, entries):
    """Write a list in the form of its suffix. entries: {"id": ..., "weight": ...} or without a weight."""
    lines = [json.dumps(entry) for entry in entries]
    if ".csv" in path.suffixes:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{entry['id']}\n" for entry in entries))
    elif path.suffix == ".json":
        path.write_text("[" + ",".join(lines) + "]")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    else:
        path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_list_is_taken_in_its_order(tmp_path, name):
    given = Given(file=write(tmp_path / name, [{"id": id} for id in IDS]))
    whole = choose_rows(given, problem())
    assert ids(whole) == IDS and whole.weights.tolist() == [1.0] * 4
    assert ids(choose_rows(given, problem(Budget(Unit.ROWS, 2)))) == IDS[:2]
    assert ids(choose_rows(given, problem(Budget(Unit.FRACTION, 0.3)))) == IDS[:3]
    assert ids(choose_rows(given, problem(Budget(Unit.TOKENS, 25)))) == IDS[:2]
    assert ids(choose_rows(given, problem(Budget(Unit.TOKENS, 1000)))) == IDS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("column", ["weight", "gtp_weight"])
def test_weights_are_scaled_to_mean_1_over_what_is_chosen(tmp_path, name, column):
    entries = [{"id": id, column: weight} for id, weight in zip(IDS, [4, 2, 0, 2], strict=True)]
    given = Given(file=write(tmp_path / name, entries))
    assert choose_rows(given, problem()).weights.tolist() == [2.0, 1.0, 0.0, 1.0]
    two = choose_rows(given, problem(Budget(Unit.ROWS, 2)))
    assert two.weights.tolist() == pytest.approx([4 / 3, 2 / 3])
    huge = [{"id": id, column: 1e308 * weight} for id, weight in zip(IDS, [1, 1, 0, 1], strict=True)]
    given = Given(file=write(tmp_path / f"huge-{name}", huge))
    assert choose_rows(given, problem()).weights.tolist() == pytest.approx([4 / 3, 4 / 3, 0.0, 4 / 3])


def test_what_a_run_writes_is_a_list(tmp_path):
    chosen = Selection(torch.tensor([7, 0, 4]), torch.tensor([1.5, 1.0, 0.5]), torch.zeros(N))
    tokenized = [TokenizedExample(row.id, (1,), (1,)) for row in ROWS]
    export(selected_rows(ROWS, tokenized, chosen, {}), tmp_path, "a run")
    for where in (tmp_path, tmp_path / "selected", tmp_path / "selected.jsonl"):
        again = choose_rows(Given(file=str(where)), problem())
        assert ids(again) == ["row-7", "row-0", "row-4"] and again.weights.tolist() == [1.5, 1.0, 0.5]
    shutil.rmtree(tmp_path / "selected" / "data")
    with pytest.raises(UserError, match="is a folder without selected.jsonl or data"):
        choose_rows(Given(file=str(tmp_path / "selected")), problem())


def test_rows_that_are_no_candidates_are_counted_and_passed_over(tmp_path, caplog):
    given = Given(file=write(tmp_path / "a.txt", [{"id": id} for id in IDS]))
    without = problem(rows=[row for row in ROWS if row.id != "row-0"])
    selection = choose_rows(given, without)
    assert [without.candidates[i].id for i in selection.indices.tolist()] == ["row-7", "row-4", "row-9"]
    assert selection.diagnostics == {"listed": 4, "listed_no_candidates": 1}
    assert "1 of the 4 rows" in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("row-1\nrow-2\nrow-1\n", r"the id 'row-1' is listed twice: .*a.txt:1 and .*a.txt:3"),
        ("", "a.txt lists no row"),
        ("\n \n", "a.txt lists no row"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, content, told):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=told):
        choose_rows(Given(file=str(tmp_path / "a.txt")), problem())


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([{"id": "row-1", "weight": -1}], r"a.jsonl:1: the weight of 'row-1' is -1; it must be a finite"),
        ([{"id": "row-1", "weight": 1}, {"id": "row-2"}], r"a.jsonl:2: the weight of 'row-2' is None"),
        ([{"id": "row-1"}, {"id": "row-2", "weight": 1}], r"a.jsonl:1: the weight of 'row-1' is None"),
        ([{"id": "row-1", "weight": "much"}], r"the weight of 'row-1' is 'much'"),
        ([{"id": "row-1", "weight": "inf"}], r"the weight of 'row-1' is 'inf'"),
        ([{"id": "row-1", "weight": True}], r"the weight of 'row-1' is True"),
        ([{"id": "row-1", "weight": 0}], r"weights of the 1 chosen rows of .* are all 0"),
        ([{"name": "row-1"}], r"a.jsonl:1 has no 'id'; it has name"),
        ([{"id": ""}], r"a.jsonl:1 has an empty 'id'"),
        ([{"id": 1.5}], r"a.jsonl:1: 'id' must be text, found the number 1.5"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_by_file_and_line(tmp_path, entries, told):
    file = write(tmp_path / "a.jsonl", entries)
    with pytest.raises(UserError, match=told):
        choose_rows(Given(file=file), problem())


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("none.txt", "none.csv"):
        with pytest.raises(UserError, match=f"no such file: .*{name}"):
            choose_rows(Given(file=str(tmp_path / name)), problem())
    (tmp_path / "a.txt").write_bytes(b"row-1\n\xff\n")
    with pytest.raises(UserError, match="a.txt is not UTF-8.*iconv -f WINDOWS-1252 -t UTF-8"):
        choose_rows(Given(file=str(tmp_path / "a.txt")), problem())


def test_an_id_that_is_not_in_the_pool_is_named_with_its_line_and_how_many(tmp_path):
    given = Given(file=write(tmp_path / "a.txt", [{"id": id} for id in ["row-1", "x", "row-2", "y"]]))
    with pytest.raises(UserError, match=r"2 of the 4 ids of .* 10 usable rows .* first 'x' \(.*a.txt:2\)"):
        given.check_pool(Pool(tuple(ROWS)))
    Given(file=write(tmp_path / "a.txt", [{"id": "row-1"}])).check_pool(Pool(tuple(ROWS)))


def test_a_budget_above_the_list_is_refused_before_and_when_it_is_used(tmp_path):
    given = Given(file=write(tmp_path / "a.txt", [{"id": id} for id in IDS]))
    for ask in (
        lambda budget: given.check_budget(budget, ROWS),
        lambda budget: choose_rows(given, problem(budget)),
    ):
        with pytest.raises(UserError, match="lists 4 candidates, .* asks for 5 rows; set budget=all"):
            ask(Budget(Unit.ROWS, 5))
        ask(Budget(Unit.ROWS, 4))
    with pytest.raises(UserError, match="lists 0 candidates"):
        given.check_budget(ALL, ROWS[1:4])


SCORES = [0.5, 3.0, -1.0, 2.0, 9.0, 0.0, 4.0, 1.0, 8.0, -7.0]  # sorted: 4 8 6 1 3 7 0 5 2 9


@pytest.mark.parametrize(
    ("order", "first"),
    [
        (Order.LARGEST, ["row-4", "row-8", "row-6"]),
        (Order.SMALLEST, ["row-9", "row-2", "row-5"]),
        (Order.MIDDLE, ["row-3", "row-7", "row-1"]),
    ],
)
def test_scores_come_by_their_order(order, first):
    given = Given(score="quality", order=order)
    selection = choose_rows(given, problem(Budget(Unit.ROWS, 3), {"quality": SCORES}))
    assert ids(selection) == first and selection.weights.tolist() == [1.0] * 3
    assert selection.diagnostics["mean_score"] == pytest.approx(
        sum(SCORES[int(id.removeprefix("row-"))] for id in first) / 3
    )
    whole = choose_rows(given, problem(ALL, {"quality": SCORES}))
    assert sorted(whole.indices.tolist()) == list(range(N)) and ids(whole)[:3] == first


def test_one_of_file_and_score_is_given():
    for settings in ({}, {"file": "a.txt", "score": "quality"}):
        with pytest.raises(UserError, match="give one of them"):
            Given(**settings)


def test_the_key_holds_what_the_file_says_and_not_where_it_lies(tmp_path):
    (tmp_path / "folder").mkdir()
    entries = [{"id": id} for id in IDS]
    one = Given(file=write(tmp_path / "a.txt", entries))
    moved = Given(file=write(tmp_path / "folder" / "b.csv", entries))
    assert (describe(one), one.reads()) == (describe(moved), moved.reads())
    before = one.reads()
    write(tmp_path / "a.txt", entries[::-1])
    assert one.reads() != before
    weighed = Given(file=write(tmp_path / "c.csv", [{**entry, "weight": 1} for entry in entries]))
    assert weighed.reads() != before
    assert describe(one) != describe(Given(score="quality"))


def test_no_other_selector_names_a_score(tmp_path):
    assert Given(score="quality").score_columns() == ("quality",)
    assert Given(file="a.txt").score_columns() == () and Random().score_columns() == ()


def test_some_candidates_keep_their_own_scores():
    part = some_candidates(problem(ALL, {"quality": SCORES}), torch.tensor([8, 2]), None)
    assert part.scores["quality"].tolist() == [8.0, -1.0] and part.budget == ALL


def test_a_pattern_that_stands_for_several_lists_is_refused(tmp_path):
    for name in ("l1", "l2"):
        (tmp_path / f"{name}.csv").write_text(f"id\n{name}\n")
    with pytest.raises(UserError, match="2 files, first l1.csv and l2.csv; name one"):
        read_list(str(tmp_path / "l*.csv"))
    assert [row.id for row in read_list(str(tmp_path / "l1*.csv"))] == ["l1"]
