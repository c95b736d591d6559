"""The page: self-contained, complete, and safe to open whatever the data says."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from leaderboard_runs import failed, record, save, selected, sweep

from gtp_exp.leaderboard import main
from gtp_exp.records.record import RowCounts, State, write_selected

VOID = {"meta", "input", "br", "link", "img", "hr"}
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% include '/etc/passwd' %}",
    "</pre></details></script><svg onload=alert(1)>",
    "javascript:alert(1)",
    "]]> --> <!-- &lt;b&gt;",
    "\x1b[31mred\x1b[0m \u202e\x00",
]


class Page(HTMLParser):
    """Elements, their attributes and text; complains of tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def build(tmp_path, records, *arguments):
    """Runs on disk -> the parsed page and its folder."""
    for i, run in enumerate(records):
        save(run, tmp_path / "runs" / "sweep", f"{i}")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *arguments]) == 0
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    return Page(html), tmp_path / "out"


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Three selectors, two budgets, five seeds; labels and residuals; a failed and a damaged run."""
    rng = random.Random(0)
    pool = [f"row-{i}" for i in range(60)]
    runs = []
    for budget, n in (("1pct", 4), ("5pct", 12)):
        for run in sweep({"gtp": 1.6, "less": 1.8, "random": 2.2}, 5, spread=0.05, rng=rng, budget=budget):
            chosen = rng.sample(pool, n)
            mix = {
                "skill": {"sorting": 0.5, "roman": 0.2, "dates": 0.3},
                "corrupted": {"True": 0.25, "False": 0.75},
            }
            pool_mix = {"skill": {"sorting": 0.1, "dates": 0.9}, "corrupted": {"True": 0.1, "False": 0.9}}
            runs.append(
                replace(
                    run,
                    selection=record(
                        chosen=chosen,
                        diagnostics={"residual": [1.0, 0.6, 0.4], "rounds": 2},
                        label_mix=mix,
                        pool_mix=pool_mix,
                    ).selection,
                )
            )
    path = tmp_path_factory.mktemp("rich")
    runs.append(failed(record("craig"), "torch.OutOfMemoryError: out of memory"))
    runs.append(replace(record("slow"), state=State.RUNNING, finished=None))
    (path / "runs" / "broken").mkdir(parents=True)
    (path / "runs" / "broken" / "results.json").write_text('{"version": 1, "sta')
    return build(path, runs)


def test_a_test_of_one_row_adds_no_standard_error_to_the_page(tmp_path):
    run = record()
    of_one = {**run.metrics["roman"], "acc_stderr": 0.0, "rows_tested": 1}
    page, _ = build(tmp_path, [replace(run, metrics={**run.metrics, "roman": of_one})])
    assert "(standard error about 2.6 pt on sorting)" in page.text


def test_every_part_of_the_page_is_there(rich):
    page, _ = rich
    for part in (
        "gtp has the lowest mean nats per token",
        "Every seed",
        "mean rank",
        "More data",
        "What it cost",
        "time for choosing",
        "What was chosen",
        "on target",
        "How much the selectors agree",
        "How closely the target was followed",
        "before and after tuning",
        "Chosen examples",
        "Sort the words of row-",
        "untuned model",
        "Holm",
        "Student's t",
        "0123456789abcdef",
        "torch 2.13.0",
        "python -m gtp_exp selector=gtp seed=0",
    ):
        assert part in page.text, part


def test_what_is_not_in_the_tables_is_listed_with_its_reason(rich):
    page, out = rich
    assert "out of memory" in page.text and "never finished, or still running" in page.text
    assert "runs/broken" in page.text and "it is not JSON" in page.text
    assert "3 not finished, not tested or unreadable" in page.text
    document = json.loads((out / "leaderboard.json").read_text())
    assert {item["state"] for item in document["incomplete"]} == {"failed", "running"}
    assert [item["name"] for item in document["unreadable"]] == ["runs/broken"]
    text = (out / "leaderboard.md").read_text()
    assert "craig" not in text.split("## Not in the tables")[0] and "out of memory" in text


def test_the_page_needs_nothing_else(rich):
    page, out = rich
    assert not [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "object", "base", "form")]
    assert not page.attributes("src")
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert not re.search(r"url\(|@import|https?://", (out / "index.html").read_text())


def test_every_link_leads_somewhere_and_no_id_is_used_twice(rich):
    page, _ = rich
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href")} <= set(ids)


def test_only_the_pages_own_script_may_run(rich):
    page, _ = rich
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [value for value in page.attributes("content") if "script-src" in value]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_no_chart_runs_off_its_area(rich):
    page, _ = rich
    numbers = [
        float(attrs[name][:-1])
        for tag, attrs in page.elements
        if tag in ("circle", "line", "rect")
        for name in ("x1", "x2", "y1", "y2", "cx", "cy")
        if attrs.get(name, "").endswith("%")
    ]
    assert len(numbers) > 100 and all(0 <= number <= 100 for number in numbers)


def test_every_seed_is_a_dot(rich):
    page, _ = rich
    dots = [attrs for tag, attrs in page.elements if tag == "circle" and attrs.get("class") == "seed"]
    assert len(dots) == 3 * 5 * 2 * 2  # selectors, seeds, budgets, metrics


def test_the_csv_holds_every_row_and_metric(rich):
    _, out = rich
    rows = list(csv.DictReader(io.StringIO((out / "leaderboard.csv").read_text())))
    assert len(rows) == 3 * 2 * 2
    gtp = next(
        r for r in rows if (r["selector"], r["budget"], r["metric"]) == ("gtp", "5pct", "nats_per_token")
    )
    assert gtp["n_seeds"] == "5" and gtp["rank"] == "1" and gtp["higher_is_better"] == "False"
    assert float(gtp["ci_low"]) < float(gtp["mean"]) < float(gtp["ci_high"])
    assert float(gtp["p_holm"]) >= float(gtp["p"]) and gtp["win_rate"] == "1.0"


def test_the_json_holds_every_seeds_value(rich):
    _, out = rich
    (table,) = json.loads((out / "leaderboard.json").read_text())["tables"]
    row = next(row for row in table["rows"] if (row["selector"], row["budget"]) == ("gtp", "5pct"))
    metric = row["metrics"]["nats_per_token"]
    assert len(metric["by_seed"]) == 5
    assert sum(metric["by_seed"].values()) / 5 == pytest.approx(metric["mean"])
    assert row["selection"]["shares"] == {"on target": pytest.approx(0.7), "corrupted": 0.25}
    assert table["pool_shares"] == {"on target": pytest.approx(0.1), "corrupted": 0.1}


# Untrusted text


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """Every text field of a record holds something that would be harmful unescaped."""
    path = tmp_path_factory.mktemp("evil")
    for i, text in enumerate(EVIL):
        run = record(
            f"sel{text}",
            i,
            chosen=[f"id {text}", "plain"],
            label_mix={f"label {text}": {f"value {text}": 0.4, "b": 0.3, "c": 0.3}},
            diagnostics={f"residual {text}": [1.0, 0.5], f"number {text}": 3},
            config={"model": {"path": text}},
            names={"model": text, "dataset": text},
        )
        run = replace(
            run,
            command=("python", text),
            git_sha=text,
            packages={text: text},
            metrics={f"task {text}": {"acc": 0.3, "nats_per_token": 2.0, "headline": "acc"}},
            untuned={},
        )
        folder = save(run, path / "runs" / "sweep", f"{i}")
        row = selected(1, f"id {text}", text=f"prompt {text}", **{f"hidden {text}": text})
        write_selected([row, selected(2, "plain")], folder)
        save(failed(record(f"bad{text}", i), f"error {text}"), path / "runs" / "sweep", f"failed{i}")
        broken = path / "runs" / f"broken{i}"
        broken.mkdir()
        (broken / "results.json").write_text(json.dumps({"version": text}))
    return build(path, [])


def test_untrusted_text_becomes_no_markup(evil):
    page, _ = evil
    assert not page.open  # every tag was closed by its own end
    assert len(page.scripts) == 1
    assert not [tag for tag, _ in page.elements if tag in ("img", "base", "iframe")]
    handlers = [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert handlers == []
    assert not any("javascript" in link for link in page.attributes("href"))
    assert {link[0] for link in page.attributes("href")} == {"#"}


def test_untrusted_text_is_shown_as_it_is(evil):
    page, _ = evil
    for text in EVIL[:7]:
        shown = " ".join(text.split())
        assert f"prompt {shown}" in page.text
        assert f"error {shown}" in page.text
    assert "49" not in re.findall(r"prompt (\d+)", page.text)


def test_untrusted_text_is_no_markup_in_markdown(evil):
    _, out = evil
    text = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert not re.search(r"<(?!/?$)[a-zA-Z/!]", text)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) <= 2  # a cell adds no column


def test_untrusted_text_does_not_steer_the_terminal(evil, capsys):
    _, out = evil
    main([str(out.parent / "runs"), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x00" not in printed and "\u202e" not in printed


def test_a_spreadsheet_runs_nothing(tmp_path):
    _, out = build(tmp_path, [record("=cmd|' /C calc'!A0"), record("@sum", 1)])
    rows = list(csv.DictReader(io.StringIO((out / "leaderboard.csv").read_text())))
    assert {row["selector"][0] for row in rows} == {"'"}


# The list of examples


def test_an_example_is_one_card_with_all_who_chose_it(tmp_path):
    page, _ = build(tmp_path, [record("gtp", chosen=["a", "b"]), record("less", chosen=["b", "c"])])
    cards = [attrs for tag, attrs in page.elements if tag == "article"]
    assert len(cards) == 3
    assert sorted(len(card["data-choosers"].split()) for card in cards) == [1, 1, 2]


def test_the_number_of_examples_is_bounded_and_the_best_ranked_are_kept(tmp_path):
    page, _ = build(tmp_path, [record(chosen=[f"e{i}" for i in range(30)])], "--examples", "4")
    assert len([tag for tag, _ in page.elements if tag == "article"]) == 4
    assert "4 of 30 distinct examples" in page.text and "of e3:" in page.text and "of e4:" not in page.text


def test_a_long_text_is_cut_and_says_so(tmp_path):
    folder = save(record(), tmp_path / "runs" / "sweep", "0")
    write_selected([selected(1, "long", text="x" * 10_000)], folder)
    page, _ = build(tmp_path, [])
    assert "8500 more characters" in page.text and "x" * 1501 not in page.text


def test_a_damaged_list_of_examples_does_not_stop_the_page(tmp_path):
    folder = save(record(), tmp_path / "runs" / "sweep", "0")
    (folder / "selected.jsonl").write_text("{}\n")
    page, _ = build(tmp_path, [])
    assert "sweep/0/selected.jsonl, line 1" in page.text


# The command


def test_nothing_complete_still_makes_a_page(tmp_path):
    page, out = build(tmp_path, [failed(record(), "disk full")])
    assert "No complete run" in page.text and "disk full" in page.text
    assert (out / "leaderboard.csv").read_text().startswith("benchmark,")


def test_runs_without_evaluation_make_a_page_of_selections(tmp_path):
    page, _ = build(tmp_path, [replace(record(s), metrics={}, untuned={}) for s in ("gtp", "random")])
    assert "What was chosen" in page.text and "No test of a model counts here" in page.text


def test_a_run_without_any_label_or_stage_makes_a_page(tmp_path):
    bare = replace(record(), stages={}, pool=None, selection=None, untuned={}, git_sha=None)
    page, _ = build(tmp_path, [bare])
    assert "What was chosen" in page.text


def test_a_run_tells_its_model_and_what_became_of_its_rows(tmp_path):
    run = replace(
        record(),
        model={"weights": "abc123", "dtype": "float32"},
        rows={
            "target": RowCounts(40, {"no completion left": 3}, 7, "c1"),
            "sorting": RowCounts(200, {}, 11, "c2"),
        },
    )
    assert run.pool is not None
    page, _ = build(tmp_path, [replace(run, pool=replace(run.pool, cut=13))])
    assert "13 cut to the model's context" in page.text
    assert "weights abc123; dtype float32" in page.text
    assert (
        "used 40; left_out: no completion left 3; cut 7; content c1; sorting: used 200; cut 11" in page.text
    )


def test_a_record_that_holds_more_than_is_known_counts_and_shows_it(tmp_path):
    folder = save(record(), tmp_path / "runs" / "sweep", "0")
    file = folder / "results.json"
    more = {"energy": {"joules": 12.5, "by <b>": ["x", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    page, out = build(tmp_path, [])
    assert "1 complete run" in page.text and "joules 12.5" in page.text and "<b>" in page.text
    (table,) = json.loads((out / "leaderboard.json").read_text())["tables"]
    assert [row["selector"] for row in table["rows"]] == ["gtp"]


@pytest.mark.parametrize("change", [{"seed": "x"}, {"version": 99}, {"stages": None}])
def test_a_record_that_holds_more_is_still_checked(tmp_path, change):
    save(record("random"), tmp_path / "runs" / "sweep", "1")
    file = save(record(), tmp_path / "runs" / "sweep", "0") / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"more": 1} | change))
    page, _ = build(tmp_path, [])
    assert "1 complete run" in page.text and "sweep/0 cannot be read: " in page.text
    assert next(iter(change)) in page.text.split("sweep/0 cannot be read: ")[1][:60]


def test_the_page_says_what_the_intervals_are_conditional_on(tmp_path):
    page, out = build(tmp_path, [record(seed=s) for s in range(2)])
    assert "conditional on it" in page.text
    assert page.text.count("gradients.seed=${seed}") == 3  # how to read it (twice), and the board's note
    assert "gradients.seed" in (out / "leaderboard.md").read_text()


def test_a_copied_folder_counts_once(tmp_path):
    for place in ("runs", "runs/copy"):
        save(record(), tmp_path / place, "0")
    page, out = build(tmp_path, [])
    (table,) = json.loads((out / "leaderboard.json").read_text())["tables"]
    assert len(table["rows"][0]["runs"]) == 1 and "1 identical copy" in page.text


def test_the_same_runs_make_the_same_tables(tmp_path):
    runs = sweep({"gtp": 1.0, "random": 2.0}, 6, spread=0.1, rng=random.Random(0))
    _, first = build(tmp_path / "a", runs)
    _, second = build(tmp_path / "b", runs)
    for name in ("leaderboard.csv", "leaderboard.json", "leaderboard.md"):
        assert (first / name).read_text() == (second / name).read_text()


def test_no_path_of_this_machine_is_on_the_page(tmp_path):
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "results.json").write_text("{")
    _, out = build(tmp_path, [record()])
    assert all(str(tmp_path) not in file.read_text() for file in out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "nowhere does not exist"),
        (["{}/empty"], "no results.json below"),
        (["{}/runs", "--metric", "bleu"], "--metric bleu is in none of the runs"),
        (["{}/runs", "--out", "{}/runs/0/results.json"], "cannot write to --out"),
    ],
)
def test_bad_arguments_are_told_without_a_traceback(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    save(record(), tmp_path / "runs", "0")
    given = [argument.format(tmp_path) for argument in arguments]
    assert main(given if "--out" in given else [*given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err and said.out == ""


def test_the_command_prints_the_table_and_where_the_page_is(tmp_path, capsys):
    _, out = build(tmp_path, [record(), record("random")])
    printed = capsys.readouterr().out
    assert "gtp" in printed and "nats per token" in printed
    assert printed.strip().endswith((out / "index.html").resolve().as_uri())


def test_the_leaderboard_imports_no_torch():
    code = "import sys, gtp_exp.leaderboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_row_links_its_runs_to_their_pages_and_only_to_https(tmp_path):
    given = [
        ("https://wandb.ai/me/p/runs/a1?apiKey=fedcba987654", "https://wandb.ai/me/p/runs/a1"),
        ("https://wandb.ai/'\"><script>x</script>", "https://wandb.ai/'\"><script>x</script>"),
        ("javascript:alert(1)", None),
        ("http://wandb.ai/a", None),
        (None, None),
    ]
    for seed, (tracked_at, _) in enumerate(given):
        save(replace(record("gtp", seed), tracked_at=tracked_at), tmp_path / "runs")
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    html = (tmp_path / "out" / "index.html").read_text()
    page, expected = Page(html), [link for _, link in given]
    links = [a["href"] for tag, a in page.elements if tag == "a" and not a["href"].startswith("#")]
    assert sorted(links) == sorted([link for link in expected if link] * 2)  # in the table, and of the run
    assert "fedcba987654" not in html and len(page.scripts) == 1
    (table,) = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["tables"]
    assert table["rows"][0]["tracked_at"] == expected
