"""Chosen rows for other trainers: by the schema that each documents, and refused where it has no words."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml
from omegaconf import OmegaConf
from written import (
    FIRST_ONLY,
    LAST_ONLY,
    PLAIN,
    REASONS,
    SEVERAL,
    SYSTEM,
    TOOLS,
    read_rows,
    row,
    turn,
    write_run,
)

from gtp_exp.errors import UserError
from gtp_exp.export.command import main
from gtp_exp.export.formats import FORMATS, for_axolotl, for_llama_factory, for_openai, for_trl
from gtp_exp.export.rows import export_rows
from gtp_exp.records.record import SelectionSummary, State


def plain(turns):
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]


def test_trl_gets_prompt_and_completion_where_last_answers_alone_carry_loss():
    rows = [row("a", PLAIN), row("b", SYSTEM), row("c", LAST_ONLY), row("d", REASONS)]
    told = for_trl(rows).rows
    assert [r["prompt"] + r["completion"] for r in told] == [plain(r.messages) for r in rows]
    assert all(r["completion"] == plain(turns.messages[-1:]) for r, turns in zip(told, rows, strict=True))
    assert [(r["id"], r["gtp_weight"]) for r in told] == [(name, 1.5) for name in "abcd"]


def test_trl_gets_messages_where_rows_have_several_answers():
    exported = for_trl([row("a", PLAIN), row("b", SEVERAL)])
    assert [r["messages"] for r in exported.rows] == [list(PLAIN), list(SEVERAL)]
    assert "assistant_only_loss=True" in exported.usage
    assert "assistant_only_loss" not in for_trl([row("a", PLAIN)]).usage


@pytest.mark.parametrize("partly", [FIRST_ONLY, LAST_ONLY])
def test_trl_refuses_by_name_what_it_would_train_otherwise(partly):
    with pytest.raises(UserError, match="row 'b' cannot be written for trl.*--format axolotl or openai"):
        for_trl([row("a", SEVERAL), row("b", partly)])


def test_tools_are_in_every_row_where_one_has_some():
    rows = [row("a", PLAIN), row("b", PLAIN, json.dumps(TOOLS))]
    assert [r["tools"] for r in for_trl(rows).rows] == [None, json.dumps(TOOLS)]
    assert [r["tools"] for r in for_llama_factory(rows).rows] == ["", json.dumps(TOOLS)]
    first, second = for_axolotl(rows).rows
    parameters = second["tools"][0]["function"]["parameters"]
    assert "tools" not in first and json.loads(parameters) == TOOLS[0]["function"]["parameters"]
    assert for_openai(rows).rows[1]["tools"] == TOOLS
    bare = TOOLS[0]["function"]
    assert for_openai([row("a", PLAIN, json.dumps([bare]))]).rows[0]["tools"] == TOOLS
    assert "tools" not in for_trl(rows[:1]).rows[0]


class Counted(list):
    """Rows that count how often they are gone through."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("messages", [PLAIN, SEVERAL], ids=["one answer", "several"])
def test_the_rows_are_not_gone_through_anew_for_every_row(name, messages):
    """100,000 rows without tools took a quarter of an hour."""
    rows = Counted(row(str(i), messages) for i in range(50))
    assert len(FORMATS[name](rows).rows) == 50 and rows.passes < 10


def test_axolotl_reads_from_every_turn_whether_it_is_trained(tmp_path):
    rows = [row("a", SYSTEM), row("b", FIRST_ONLY), row("c", LAST_ONLY), row("d", REASONS)]
    run = write_run(tmp_path / "run", rows)
    assert main([str(run), "--format", "axolotl", "--out", str(tmp_path / "out")]) == 0
    (entry,) = OmegaConf.to_container(OmegaConf.load(tmp_path / "out" / "axolotl.yaml"))["datasets"]
    assert entry == {
        "path": f"{tmp_path}/out/train.jsonl",
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_field_training": "train",
        "roles_to_train": [],
        "train_on_eos": "turn",
    }
    told = [r[entry["field_messages"]] for r in read_rows(tmp_path / "out")]
    marks = [[t.pop(entry["message_field_training"]) for t in turns] for turns in told]
    assert marks == [
        [False, False, True],
        [False, True, False, False],
        [False, False, False, True],
        [False, True],
    ]
    assert told == [plain(r.messages) for r in rows]


def aligned(entry, told):
    """What LLaMA-Factory's converter of the formatting `sharegpt` makes of a row: system, then pairs."""
    tags, messages = entry["tags"], told[entry["columns"]["messages"]]
    role, content = tags["role_tag"], tags["content_tag"]
    system = messages[0][content] if messages[0][role] == tags["system_tag"] else ""
    turns = messages[1:] if system else messages
    assert len(turns) % 2 == 0
    for k, one in enumerate(turns):
        assert one[role] == (tags["assistant_tag"] if k % 2 else tags["user_tag"])
    return system, [one[content] for one in turns]


def test_llama_factory_finds_system_and_turns_by_its_own_description(tmp_path):
    rows = [row("a", SYSTEM), row("b", SEVERAL), row("c", REASONS, json.dumps(TOOLS))]
    run = write_run(tmp_path / "run", rows)
    out = tmp_path / "out"
    assert main([str(run), "--format", "llama_factory", "--out", str(out)]) == 0
    entry = json.loads((out / "dataset_info.json").read_text())["gtp_selected"]
    assert (entry["file_name"], entry["formatting"]) == ("train.jsonl", "sharegpt")
    assert entry["columns"] == {"messages": "messages", "tools": "tools"}
    assert [aligned(entry, told) for told in read_rows(out)] == [
        ("Be brief.", ["Two?", "No."]),
        ("", ["One?", "Yes.", "And three?", "Perhaps."]),
        ("", ["Four?", "<think>\nOne more.\n</think>\n\nFive."]),
    ]
    assert "mask_history" not in (out / "README.md").read_text()


def test_llama_factory_trains_last_answers_alone_where_all_rows_ask_for_it():
    assert "mask_history: true" in for_llama_factory([row("a", PLAIN), row("b", LAST_ONLY)]).usage
    for mixed in ([row("a", SEVERAL), row("b", LAST_ONLY)], [row("b", FIRST_ONLY)]):
        with pytest.raises(UserError, match="row 'b' cannot be written for llama_factory"):
            for_llama_factory(mixed)


@pytest.mark.parametrize(
    "turns",
    [
        (turn("assistant", "Hello."), *PLAIN),
        (turn("user", "a"), turn("user", "b"), turn("assistant", "c")),
        (*PLAIN, turn("user", "Bye.")),
        (turn("user", "a"), turn("tool", "b"), turn("assistant", "c")),
    ],
)
def test_llama_factory_is_given_no_row_that_it_would_skip(turns):
    with pytest.raises(UserError, match="row 'x' cannot be written for llama_factory: after a system turn"):
        for_llama_factory([row("x", turns)])


def test_openai_is_told_by_weights_which_answers_are_trained():
    rows = [row("a", SYSTEM), row("b", LAST_ONLY), row("c", FIRST_ONLY)]
    told = for_openai(rows).rows
    assert all(set(r) == {"messages"} for r in told)
    assert told[0]["messages"] == list(SYSTEM)
    assert [t.get("weight") for t in told[1]["messages"]] == [None, 0, None, 1]
    assert [t.get("weight") for t in told[2]["messages"]] == [None, 1, None, 0]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (REASONS, "an answer has reasoning"),
        ((turn("user", "a"), turn("tool", "b"), turn("assistant", "c")), "a turn has the role tool"),
        ((*PLAIN, turn("user", "Bye.")), "its last turn is no answer"),
    ],
)
def test_openai_refuses_by_name_what_it_does_not_take(turns, reason):
    with pytest.raises(UserError, match=f"row 'x' cannot be written for openai: {reason}"):
        for_openai([row("a", PLAIN), row("x", turns)])


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_is_told_the_hidden_labels(name, tmp_path, capsys):
    run = write_run(tmp_path / "run", [row("a", PLAIN), row("b", SYSTEM)])
    assert main([str(run), "--format", name, "--out", str(tmp_path / "new" / "out")]) == 0
    assert f"wrote 2 rows for {name}: {tmp_path}/new/out/train.jsonl" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "new" / "out")) == 2
    assert "hidden" not in "".join(path.read_text() for path in (tmp_path / "new" / "out").iterdir())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}"], "nothing to do: give --format FORMAT --out FOLDER, or --merge OUT"),
        (["{run}", "--format", "trl"], "--format and --out belong together; add --out FOLDER"),
        (["{run}", "--out", "{new}"], "add --format trl|axolotl|llama_factory|openai"),
        (["{run}", "--format", "TRL", "--out", "{new}"], "--format TRL is unknown; give one of trl, axolotl"),
        (["{run}", "--format", "trl", "--out", "{run}"], "--out {run} exists; give a new folder"),
        (["{run}", "--merge", "{run}"], "--merge {run} exists; give a new folder"),
        (["{new}", "--merge", "{new}"], "RUN={new} is no folder"),
        (
            ["{parent}", "--merge", "{new}"],
            "RUN={parent} is no run, it has no results.json; give one of those",
        ),
        (
            ["{run}/data", "--merge", "{new}"],
            "RUN={run}/data is no run, it has no results.json; give a folder",
        ),
        (["{run}", "--merge", "{new}"], "RUN={run} has no tuned model: it was run by an earlier release"),
        (["{chosen}", "--merge", "{new}"], "it ended with the selection; run it without until=selection"),
        (
            ["{failed}", "--format", "trl", "--out", "{new}"],
            "RUN={failed} has no selected.jsonl: it is failed",
        ),
        (["{failed}", "--merge", "{new}"], "it is failed; run the same command again"),
        (["{running}", "--merge", "{new}"], "it is running; wait for its end"),
        (["{broken}", "--format", "trl", "--out", "{new}"], "selected.jsonl, line 1"),
        (
            ["{cut}", "--format", "trl", "--out", "{new}"],
            "selected.jsonl holds 1 rows that are not the 2 which the run has chosen",
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(arguments, told, tmp_path, capsys):
    runs = tmp_path / "runs"
    places = {name: runs / name for name in ("run", "failed", "running", "chosen", "broken", "cut")}
    write_run(places["run"], [row("a", PLAIN)])
    write_run(places["failed"], [], State.FAILED)
    write_run(places["running"], [], State.RUNNING)
    write_run(places["broken"], [row("a", PLAIN)])
    (places["broken"] / "selected.jsonl").write_text('{"rank": 1\n')
    chosen = SelectionSummary(2, 9, ("a", "b"), (1.0, 1.0), {}, {}, {}, 0, 0)
    write_run(places["cut"], [row("a", PLAIN)], selection=chosen)
    write_run(places["chosen"], [])
    found = json.loads((places["chosen"] / "results.json").read_text())
    found["config"] = {"until": "selection"}
    (places["chosen"] / "results.json").write_text(json.dumps(found))
    (places["run"] / "data").mkdir()
    places |= {"parent": runs, "new": tmp_path / "new"}
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(**places) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gtp-exp-export: ") and told.format(**places) in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("folder", ["plain", "for axolotl #1"])
def test_paths_with_blanks_are_quoted_where_they_are_read_again(tmp_path, folder):

    run = tmp_path / "run"
    write_run(run, [row("a", PLAIN)])
    export_rows(run, "axolotl", tmp_path / folder)
    (entry,) = yaml.safe_load((tmp_path / folder / "axolotl.yaml").read_text())["datasets"]
    assert entry["path"] == str(tmp_path / folder / "train.jsonl")
    export_rows(run, "llama_factory", tmp_path / f"{folder} again")
    line = next(
        line
        for line in (tmp_path / f"{folder} again" / "README.md").read_text().splitlines()
        if line.startswith("llamafactory-cli")
    )
    assert f"dataset_dir={tmp_path / f'{folder} again'}" in shlex.split(line)
