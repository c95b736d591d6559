"""Tables as LaTeX and the page as a Space: numbers, intervals, and nothing that untrusted text could do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import yaml
from leaderboard_runs import record, save

from gtp_exp.leaderboard.command import main
from gtp_exp.leaderboard.latex import latex
from gtp_exp.records.record import State


@pytest.fixture
def runs(tmp_path):
    """Five seeds of gtp, three of random, one of an awkward name; their losses are known."""
    made = [record("gtp", seed, loss=2.0 + seed / 1000) for seed in range(5)]
    made += [record("random", seed, loss=3.0 + seed / 100) for seed in range(3)]
    made.append(record(r"50%_{a}\b&c~^#$<|im|>", 0, loss=2.5))
    for i, one in enumerate(made):
        save(one, tmp_path / "runs" / str(i))
    return tmp_path


def written(runs, *arguments):
    out = runs / "out"
    assert main([str(runs / "runs"), "--out", str(out), *arguments]) == 0
    return out


def rows_of(text):
    """The cells of every row, by the selector's name."""
    lines = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    return {cells[0]: cells for cells in lines}


def test_a_latex_table_has_means_intervals_and_differences(runs):
    out = written(runs, "--latex")
    text = (out / "leaderboard.tex").read_text()
    rows = rows_of(text)
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns and {len(cells) for cells in rows.values()} == {len(columns.group(1))}
    known = json.loads((out / "leaderboard.json").read_text())["tables"][0]
    ranked = known["metrics"][0]["name"]
    place = [cell for cell in rows["selector"]].index(known["metrics"][0]["label"].replace("_", r"\_"))
    gtp = next(row for row in known["rows"] if row["selector"] == "gtp")["metrics"][ranked]
    low, high = gtp["interval"]["low"], gtp["interval"]["high"]
    assert f"{gtp['mean']:.3f}" in rows["gtp"][place]
    assert f"[{low:.3f}, {high:.3f}]" in rows["gtp"][place]
    assert rows["gtp"][-2].startswith("$-$1.0")  # one less than random
    assert rows["random"][-2:] == ["", ""]
    assert rows["untuned model"][place]


def test_a_setting_to_stand_beside_that_no_run_has_is_refused(runs, capsys):
    for key, told in (("trin", "; did you mean train?"), ("train.l", "; did you mean train.lr?"), ("x", "")):
        assert main([str(runs / "runs"), "--out", str(runs / "out"), "--beside", key]) == 2
        assert f"--beside {key} is a setting of none of the runs{told}" in capsys.readouterr().err
    written(runs, "--beside", "train", "--beside", "model.lora", "--beside", "model.found.dtype")


def test_a_file_that_an_earlier_command_left_beside_the_new_tables_is_told(runs, capsys):
    written(runs, "--latex")
    assert "earlier command" not in capsys.readouterr().out
    out = written(runs, "--metric", "acc")
    told = f"leaderboard.tex in {out}: left by an earlier command, and not of these tables."
    assert told in capsys.readouterr().out and (out / "leaderboard.tex").exists()


def test_no_name_has_a_meaning_in_latex(runs):
    text = (written(runs, "--latex") / "leaderboard.tex").read_text()
    assert r"50\%\_\{a\}\textbackslash{}b\&c\textasciitilde{}\textasciicircum{}\#\$" in text
    assert r"\$\textless{}\textbar{}im\textbar{}\textgreater{}" in text
    body = text.split("\\toprule")[1]
    for line in body.splitlines():
        assert not re.search(r"(?<!\\)[%#]", line)


def test_it_is_written_where_it_is_asked_for(runs):
    assert not (written(runs) / "leaderboard.tex").exists()
    assert "tabular" not in latex([], "random")


def test_a_space_is_a_static_page_with_its_numbers(runs):
    space = runs / "space"
    out = written(runs, "--space", str(space), "--space-title", 'Mine: "best" \N{TROPHY}')
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "index.html", "leaderboard.json"]
    _, head, _ = (space / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert (
        card["sdk"] == "static"
        and card["title"] == 'Mine: "best" \N{TROPHY}'
        and card["app_file"] == "index.html"
    )
    for name in ("index.html", "leaderboard.json"):
        assert (space / name).read_bytes() == (out / name).read_bytes()
    assert written(runs, "--space", str(space))  # again, over itself


def test_a_folder_with_other_files_is_no_space(runs, capsys):
    (runs / "space").mkdir()
    (runs / "space" / "thesis.tex").write_text("mine")
    assert main([str(runs / "runs"), "--out", str(runs / "out"), "--space", str(runs / "space")]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (runs / "space" / "thesis.tex").read_text() == "mine"
    assert [path.name for path in (runs / "space").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("option", "name"), [("--space", "README.md"), ("--out", "index.html")])
def test_files_of_others_are_not_replaced(runs, capsys, option, name):
    folder = runs / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    assert main([str(runs / "runs"), "--out", str(runs / "out"), option, str(folder)]) == 2
    assert f"{option} {folder} holds {name}" in capsys.readouterr().err
    assert (folder / name).read_text() == "mine" and len(list(folder.iterdir())) == 1


def test_nothing_is_published_where_the_leaderboard_is_refused(runs):
    taken = runs / "mine"
    taken.mkdir()
    (taken / "index.html").write_text("mine")
    assert main([str(runs / "runs"), "--out", str(taken), "--space", str(runs / "space")]) == 2
    assert not (runs / "space").exists()


def test_a_picture_draws_each_selector_over_its_budgets_in_both_palettes(tmp_path):
    sizes = {"1pct": 10, "10pct": 100}
    for i, (budget, name, seed) in enumerate(
        (budget, name, seed) for budget in sizes for name in ("gtp", "<b>") for seed in range(3)
    ):
        loss = 2.0 + seed / 10 - sizes[budget] / 200 + (name != "gtp")
        chosen = [f"r{k}" for k in range(sizes[budget])]
        save(record(name, seed, budget=budget, chosen=chosen, loss=loss), tmp_path / "runs" / str(i))
    out = written(tmp_path, "--picture")
    shapes = {}
    for palette in ("light", "dark"):
        picture = ElementTree.fromstring((out / f"curve-{palette}.svg").read_text())
        lines = picture.findall("{*}polyline")
        assert len(lines) == 2
        for line in lines:
            (x0, y0), (x1, y1) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
            assert x0 < x1 and y0 < y1  # y counts from the top, and the loss falls
        assert {"gtp", "<b>"} <= {text.text for text in picture.findall("{*}text")}
        assert len(picture.findall("{*}polygon")) == 2
        shapes[palette] = [line.attrib["points"] for line in lines], lines[0].attrib["stroke"]
    assert shapes["light"][0] == shapes["dark"][0]
    assert shapes["light"][1] != shapes["dark"][1]


def test_runs_of_one_budget_have_no_picture_and_all_else(runs, capsys):
    assert main([str(runs / "runs"), "--out", str(runs / "out"), "--picture"]) == 0
    assert "No picture: " in capsys.readouterr().out
    assert (runs / "out" / "index.html").exists() and not list((runs / "out").glob("*.svg"))


def test_the_best_is_bold_in_latex_and_nothing_else_is(tmp_path):
    for i, (name, seed) in enumerate((name, seed) for name in ("gtp", "random") for seed in range(5)):
        save(
            record(name, seed, loss=2.0 + (name != "gtp") * (1 + seed / 100) + seed / 1000),
            tmp_path / "runs" / str(i),
        )
    rows = rows_of((written(tmp_path, "--latex") / "leaderboard.tex").read_text())
    bold = [(name, place) for name, cells in rows.items() for place, c in enumerate(cells) if "textbf" in c]
    assert bold == [("gtp", 3)]


@pytest.mark.parametrize("failed", [3, 5])
def test_the_terminal_names_a_few_of_the_runs_outside_the_tables(runs, capsys, failed):
    for seed in range(failed):
        save(replace(record("craig", seed), state=State.FAILED, error=f"reason {seed}"), runs / "runs")
    out = written(runs)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not in the tables")]
    assert len(told) == min(failed, 4) and "reason 0" in told[0]
    assert told[3:] == ["Not in the tables: 2 more; leaderboard.md and the page name them"][: failed - 3]
    assert all(f"reason {seed}" in (out / "leaderboard.md").read_text() for seed in range(failed))
