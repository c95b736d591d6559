"""Other people's forms of a conversation read to the same messages, with the loss where they put it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forms import columns, write_lines

from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.forms import Format
from gtp_exp.data.rendering import NO_PLACE_FOR_RESULTS, Rendered, render
from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.errors import UserError

HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TURN = (Message("user", "Hi"), Message("assistant", "Hello"))
CALL = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})


@pytest.fixture
def load(tmp_path):
    def load(*rows: dict[str, Any], **settings: Any) -> Pool:
        return Jsonl([write_lines(tmp_path / "pool.jsonl", *rows)], **settings).load()

    return load


def pairs(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [HUMAN, GPT]},
        {"conversations": [USER, ANSWER]},
        {"messages": [HUMAN, GPT]},
        {"conversations": json.dumps([HUMAN, GPT])},
        {"conversations": [HUMAN, {**GPT, "value": [{"type": "text", "text": "Hel"}, {"text": "lo"}]}]},
        {"messages": [{**USER, "content": ["H", "i"]}, ANSWER]},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [HUMAN], "completion": [GPT]},
    ],
)
def test_every_form_is_recognised_and_is_the_same_conversation(load, row):
    assert load(row).examples[0].messages == TURN


def test_sharegpt_can_be_asked_for_by_name(load):
    both = {"conversations": [HUMAN, GPT], "prompt": "p", "completion": "c"}
    with pytest.raises(UserError, match="fit several forms"):
        load(both)
    assert load(both, format=Format.SHAREGPT).examples[0].messages == TURN
    named = {"chat": [HUMAN, GPT], "prompt": "p", "completion": "c"}
    chat = load(named, format=Format.SHAREGPT, columns=columns(conversations="chat"))
    assert chat.examples[0].messages == TURN


def test_a_call_carries_loss_and_what_a_tool_returns_does_not(load):
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            HUMAN,
            {"from": "function_call", "value": CALL},
            {"from": "observation", "value": '{"degrees": 7}'},
            {"from": "gpt", "value": "It is 7 degrees."},
        ]
    }
    (example,) = load(row).examples
    assert pairs(example) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", CALL),
        ("tool", '{"degrees": 7}'),
        ("assistant", "It is 7 degrees."),
    ]
    for role in ("tool", "function"):
        row["conversations"][3]["from"] = role
        assert pairs(load(row).examples[0]) == pairs(example)


def test_a_call_may_end_a_conversation(load):
    (example,) = load({"conversations": [HUMAN, {"from": "function_call", "value": CALL}]}).examples
    assert example.completion == CALL


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "a.png"}}, "no text (image_url)"),
        ({"type": "image"}, "no text (image)"),
        ({"type": "text", "text": None}, "no text (text)"),
        (3, "no text (int)"),
    ],
)
def test_a_part_that_is_no_text_leaves_the_row_out_with_its_kind(load, part, reason):
    pool = load({"messages": [{**USER, "content": [part, "Hi"]}, ANSWER]}, {"messages": [USER, ANSWER]})
    assert pool.skipped == {f"a part of a message that is {reason}": 1} and len(pool.examples) == 1


def test_the_answers_in_a_prompt_carry_no_loss(load):
    """As TRL trains such rows: the completion alone."""
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, USER, ANSWER, {**USER, "content": "And?"}],
        "completion": [{**ANSWER, "content": "Well."}],
    }
    (example,) = load(row).examples
    assert [(m.role, m.train) for m in example.messages if m.role == "assistant"] == [
        ("assistant", False),
        ("assistant", True),
    ]
    assert [m.role for m in example.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_completion_of_several_turns_is_trained_whole(load):
    row = {"prompt": [USER], "completion": [ANSWER, {**USER, "content": "And?"}, {**ANSWER, "content": "So"}]}
    (example,) = load(row).examples
    assert [m.train for m in example.messages if m.role == "assistant"] == [True, True]


def test_a_prompt_and_a_completion_of_two_kinds_are_refused(load):
    with pytest.raises(UserError, match="pool.jsonl:1: 'completion' must be a list of messages, found a t"):
        load({"prompt": [USER], "completion": "Hello"})
    pool = load({"prompt": [USER], "completion": []}, {"prompt": [USER], "completion": [ANSWER]})
    assert pool.skipped == {"empty completion": 1}


@pytest.mark.parametrize("text", ["[1, 2, 3]", '[{"role": "user", "content": "Hi"}]'])
def test_a_text_that_looks_like_a_list_stays_a_text(load, text):
    (example,) = load({"prompt": text, "completion": text}).examples
    assert pairs(example) == [("user", text), ("assistant", text)]


def test_alpaca_with_system_and_history(load):
    row = {"instruction": "And?", "output": "So.", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    expected = [
        *(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")),
        *(("user", "And?"), ("assistant", "So.")),
    ]
    assert pairs(load(row).examples[0]) == expected
    cells = {**row, "history": json.dumps(row["history"])}  # as a table of texts holds it
    assert pairs(load(cells).examples[0]) == expected


class Template:
    """A tokenizer that writes the roles that it knows, as chat templates do."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

    def get_chat_template(self) -> str:
        return ""

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        turns = [f"<{m['role']}>{m['content']}<end>" for m in messages if m["role"] in self.roles]
        return "".join(turns) + "<assistant>" * add_generation_prompt


def test_the_loss_of_a_conversation_with_a_tool(load):
    row = {
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": CALL},
            {"from": "tool", "value": "7"},
            GPT,
        ]
    }
    (example,) = load(row).examples
    rendered = render(example, Template("user", "assistant", "tool"))
    assert isinstance(rendered, Rendered)
    assert [rendered.text[turn.answer : turn.end] for turn in rendered.turns] == [CALL, "Hello"]
    assert "<tool>7<end>" in rendered.text
    assert render(example, Template("user", "assistant")) == NO_PLACE_FOR_RESULTS
