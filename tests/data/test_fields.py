"""Fields that change what a row means are used, or the row is left out and counted; none is lost unsaid."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from forms import write_lines

from gtp_exp.data.examples import Message, Pool
from gtp_exp.data.fields import LeftOut, history_of, reasoning_of, tools_of
from gtp_exp.data.hashing import content_hash
from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.errors import UserError

USER = {"role": "user", "content": "Say it."}
GOOD = {"role": "assistant", "content": "good"}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.fixture
def load(tmp_path):
    def load(*rows: dict[str, Any], strict: bool = False) -> Pool:
        return Jsonl([write_lines(tmp_path / "pool.jsonl", *rows)], strict=strict).load()

    return load


@pytest.mark.parametrize("name", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, False])
def test_a_turn_that_is_not_to_be_trained_is_marked(load, name, value):
    bad = {"role": "assistant", "content": "BAD", name: value}
    (example,) = load({"messages": [USER, bad, USER, {**GOOD, name: 1}]}).examples
    assert [m.train for m in example.messages] == [True, False, True, True]


def test_one_mark_is_enough_to_leave_a_turn_untrained(load):
    for marks in ({"weight": 0, "train": True}, {"weight": 1, "train": False}):
        (example,) = load({"messages": [USER, {**GOOD, **marks}, USER, GOOD]}).examples
        assert [m.train for m in example.messages] == [True, False, True, True]


@pytest.mark.parametrize("value", [0.5, "no", -1])
def test_another_weight_leaves_the_row_out(load, value):
    pool = load({"messages": [USER, {**GOOD, "weight": value}]}, {"messages": [USER, GOOD]})
    assert pool.skipped == {"a message whose 'weight' is neither 0 nor 1": 1} and len(pool.examples) == 1


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_apart_from_the_answer(load, name):
    (example,) = load({"messages": [USER, {**GOOD, name: "It is good."}]}).examples
    assert example.messages[1] == Message("assistant", "good", "It is good.")
    (example,) = load({"prompt": "Say it.", "completion": "good", name: "It is good."}).examples
    assert example.messages[1] == Message("assistant", "good", "It is good.")


def test_reasoning_that_is_no_text_leaves_the_row_out(load):
    pool = load({"messages": [USER, {**GOOD, "reasoning_content": ["So."]}]}, {"messages": [USER, GOOD]})
    assert pool.skipped == {"'reasoning_content' that is no text": 1} and len(pool.examples) == 1


def test_system_and_history_are_turns_before_the_question(load):
    row = {
        "instruction": "And 3?",
        "input": "",
        "output": "5",
        "system": "Numbers.",
        "history": [["2?", "4"]],
    }
    (example,) = load(row).examples
    roles = [(m.role, m.content) for m in example.messages]
    assert roles == [
        ("system", "Numbers."),
        ("user", "2?"),
        ("assistant", "4"),
        ("user", "And 3?"),
        ("assistant", "5"),
    ]
    pool = load({**row, "history": [["2?"]]}, row | {"system": None, "history": None})
    assert pool.skipped == {"'history' that holds no pairs of texts": 1}
    assert [m.role for m in pool.examples[0].messages] == ["user", "assistant"]


def test_a_system_column_does_not_override_another_system_turn(load):
    system = {"role": "system", "content": "Be kind."}
    pool = load(
        {"messages": [system, USER, GOOD], "system": "Be kind."},
        {"messages": [system, USER, GOOD], "system": "Be brief."},
    )
    assert [m.role for m in pool.examples[0].messages] == ["system", "user", "assistant"]
    assert pool.skipped == {"'system' and another system turn": 1}


def test_tools_come_as_list_or_as_json(load):
    rows = [{"messages": [USER, GOOD], "tools": tools} for tools in (TOOLS, json.dumps(TOOLS), [], None, "")]
    wrong = [{"messages": [USER, GOOD], "tools": tools} for tools in ("weather", TOOLS[0], '{"name": "x"}')]
    pool = load(*rows, *wrong)
    assert [json.loads(e.tools or "[]") for e in pool.examples] == [TOOLS, TOOLS, [], [], []]
    assert pool.skipped == {"'tools' that is neither a list nor JSON": 1, "'tools' that is no list": 2}


def test_json_that_is_nested_too_deeply_is_no_list(load):
    deep = "[" * 100_000
    pool = load({"messages": [USER, GOOD]}, {"messages": [USER, GOOD], "tools": deep})
    assert pool.skipped == {"'tools' that is neither a list nor JSON": 1}
    with pytest.raises(UserError, match="must be a list of messages, found a text"):
        load({"messages": deep})


def test_what_only_other_rows_tools_have_is_no_part_of_a_tool(load):
    """In a table every tool has the keys of all, with null where a tool has none."""
    weather = {"name": "weather", "parameters": {"city": {"type": "string", "enum": None}}, "strict": None}
    (example,) = load({"messages": [USER, GOOD], "tools": [weather]}).examples
    assert json.loads(example.tools) == [{"name": "weather", "parameters": {"city": {"type": "string"}}}]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"history": 5}, "'history' that is no list"),
        ({"history": {"a": "b"}}, "'history' that is no list"),
        ({"history": "before"}, "'history' that is no list"),
        ({"history": ["你好", "再见"]}, "'history' that holds no pairs of texts"),
        ({"tools": ["weather", 3, None]}, "'tools' that holds something other than objects"),
        ({"tools": '[{"least": NaN}]'}, "'tools' that holds a value which JSON has not"),
    ],
)
def test_a_field_of_another_kind_leaves_the_row_out(load, given, reason):
    row = {"instruction": "And 3?", "output": "5"}
    pool = load(row, row | given)
    assert pool.skipped == {reason: 1} and len(pool.examples) == 1


@pytest.mark.parametrize(
    ("name", "read", "value"),
    [
        ("history", history_of, [["a\ud800", "b"]]),
        ("tools", tools_of, [{"name": "a\ud800"}]),
        ("reasoning", reasoning_of, {"reasoning": "a\ud800"}),
    ],
)
def test_half_a_surrogate_pair_leaves_the_row_out(name, read, value):
    with pytest.raises(LeftOut, match=f"'{name}' that holds half a surrogate pair"):
        read(value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {**GOOD, "tool_calls": TOOLS}]},
        {"messages": [USER, {**GOOD, "function_call": {"name": "weather"}}]},
        {"messages": [USER, GOOD], "images": ["a.png"]},
        {"messages": [USER, GOOD], "chat_template_kwargs": {"enable_thinking": True}},
    ],
)
def test_what_cannot_be_used_leaves_the_row_out_and_is_named(load, row, caplog):
    with caplog.at_level(logging.WARNING):
        pool = load(row, {"messages": [USER, GOOD]})
    (reason,) = pool.skipped
    assert "is not supported" in reason and reason in caplog.text and len(pool.examples) == 1
    with pytest.raises(UserError, match="pool.jsonl:1 cannot be used: .*not supported.*dataset.strict"):
        load(row, strict=True)


UNSUPPORTED = "tool_calls function_call functions images image videos video audios audio documents refusal"


@pytest.mark.parametrize("name", [*UNSUPPORTED.split(), "chat_template_kwargs"])
def test_none_of_these_fields_is_passed_over_in_a_row_or_in_a_message(load, name):
    for row in ({"messages": [USER, GOOD], name: ["x"]}, {"messages": [USER, {**GOOD, name: ["x"]}]}):
        pool = load(row, {"messages": [USER, GOOD]})
        assert pool.skipped == {f"'{name}' is not supported": 1} and len(pool.examples) == 1


def test_empty_fields_change_nothing(load):
    plain = load({"messages": [USER, GOOD]})
    empty = {**GOOD, "tool_calls": [], "reasoning_content": None, "weight": None}
    assert content_hash(load({"messages": [USER, empty], "images": [], "tools": None})) == content_hash(plain)


def test_what_is_not_read_is_said_once(load, caplog):
    rows = [
        {"messages": [USER | {"name": "Ada"}, GOOD], "weight": 0, "nested": {"a": 1}, "skill": "talk"}
        for _ in range(2)
    ]
    with caplog.at_level(logging.WARNING):
        pool = load(*rows)
    (line,) = [r.getMessage() for r in caplog.records if "not used" in r.getMessage()]
    assert "messages.name (2 rows), nested (2 rows), weight (2 rows)" in line and "skill" not in line
    assert [facts["skill"] for facts in pool.hidden.values()] == ["talk", "talk"]


@pytest.mark.parametrize("name", "weight sample_weight loss_mask mask train chosen rejected kto_tag".split())
def test_a_column_that_other_programs_train_by_is_named_though_it_is_a_number_or_a_text(load, name, caplog):
    for value in (1, "a text"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load({"prompt": "Say it.", "completion": "good", name: value})
        assert f"not used: {name} (1 rows)" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [USER, {**GOOD, "weight": 0}, USER, GOOD]},
        {"messages": [USER, {**GOOD, "reasoning": "So."}, USER, GOOD]},
        {"messages": [USER, GOOD, USER, GOOD], "tools": TOOLS},
        {"messages": [USER, GOOD, USER, GOOD], "system": "Be kind."},
    ],
)
def test_the_content_hash_tells_such_rows_apart(load, change):
    assert content_hash(load(change)) != content_hash(load({"messages": [USER, GOOD, USER, GOOD]}))


def test_the_content_hash_tells_apart_what_such_fields_hold(load):
    turns = [USER, GOOD, USER, GOOD]
    other = [{"type": "function", "function": {"name": "time"}}]
    rows = [
        {"messages": [USER, {**GOOD, "weight": 0}, USER, GOOD]},
        {"messages": [USER, GOOD, USER, {**GOOD, "weight": 0}]},
        {"messages": [USER, {**GOOD, "reasoning": "So."}, USER, GOOD]},
        {"messages": [USER, {**GOOD, "reasoning": "Or so."}, USER, GOOD]},
        {"messages": turns, "tools": TOOLS},
        {"messages": turns, "tools": other},
    ]
    assert len({content_hash(load(row)) for row in rows}) == len(rows)
