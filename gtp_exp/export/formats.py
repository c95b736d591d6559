"""Turn chosen rows into what other trainers read: TRL, axolotl, LLaMA-Factory, OpenAI's fine-tuning service.

Each says which turns carry loss in its own way. What a format has no way to say is refused by the row's id,
so that nothing is trained that the run did not train, and nothing is lost. None of the four reads a weight
per row; where a further column does no harm, the weight stands in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.records.record import SelectedRow

DATA = "train.jsonl"
WEIGHT = "gtp_weight"
Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """Holds what is written for a trainer: rows, further files by name, and how the rows are trained on."""

    rows: Sequence[Row]
    usage: str  # Markdown; {folder} and {data} stand for paths, quoted
    files: Mapping[str, str]


def trained_turns(row: SelectedRow) -> list[int]:
    """Return which turns carry loss: answers with a prompt, not blank and not marked otherwise."""
    return [
        k
        for k, turn in enumerate(row.messages)
        if k and turn["role"] == "assistant" and turn.get("weight", 1) != 0 and turn["content"].strip()
    ]


def answers(row: SelectedRow) -> list[int]:
    """Return the turns of the assistant."""
    return [k for k, turn in enumerate(row.messages) if turn["role"] == "assistant"]


def for_trl(rows: Sequence[SelectedRow]) -> Exported:
    """Return rows for TRL's SFTTrainer: prompt and completion where only last answers carry loss, else
    messages, of which `assistant_only_loss=True` trains every answer."""
    if all(_only_last(row) for row in rows):
        told = [
            {"prompt": _turns(row.messages[:-1]), "completion": _turns(row.messages[-1:]), **more}
            for row, more in zip(rows, _more(rows), strict=True)
        ]
        return Exported(told, _TRL_COMPLETION, {})
    for row in rows:
        if trained_turns(row) != answers(row):
            raise _refused(row, "trl", "only some of its answers carry loss", "axolotl or openai")
    told = [{"messages": _turns(row.messages), **more} for row, more in zip(rows, _more(rows), strict=True)]
    return Exported(told, _TRL_MESSAGES, {})


def for_axolotl(rows: Sequence[SelectedRow]) -> Exported:
    """Return rows for axolotl's dataset type `chat_template`, with a mark on every turn that carries loss."""
    told = []
    for row in rows:
        trained = set(trained_turns(row))
        turns = [{**turn, "train": k in trained} for k, turn in enumerate(_turns(row.messages))]
        tools = {"tools": list(map(_plain_tool, json.loads(row.tools)))} if row.tools else {}
        told.append({"messages": turns, **tools, "id": row.id, WEIGHT: row.weight})
    return Exported(told, _AXOLOTL, {"axolotl.yaml": _AXOLOTL_YAML})


def for_llama_factory(rows: Sequence[SelectedRow]) -> Exported:
    """Return rows for LLaMA-Factory, in its `sharegpt` formatting with the roles of OpenAI."""
    history = [row for row in rows if len(answers(row)) > 1]
    mask_history = bool(history) and all(_only_last(row) for row in history)
    for row in rows:
        _check_turns_alternate(row)
        if trained_turns(row) != answers(row) and not (mask_history and _only_last(row)):
            raise _refused(row, "llama_factory", "only some of its answers carry loss", "axolotl or openai")
    told = [
        {"messages": [_with_thinking_inside(turn) for turn in _turns(row.messages)], **more}
        for row, more in zip(rows, _more(rows, no_tools=""), strict=True)
    ]
    tools = {"tools": "tools"} if any(row.tools for row in rows) else {}
    info = {
        "gtp_selected": {
            "file_name": DATA,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", **tools},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }
    usage = _LLAMA_FACTORY + (_MASK_HISTORY if mask_history else "")
    return Exported(told, usage, {"dataset_info.json": json.dumps(info, indent=1) + "\n"})


def for_openai(rows: Sequence[SelectedRow]) -> Exported:
    """Return rows for OpenAI's supervised fine-tuning of chat models; a weight of 0 or 1 says which answers
    of a row carry loss, where not all do."""
    told = []
    for row in rows:
        trained = trained_turns(row)
        if odd := sorted({turn["role"] for turn in row.messages} - {"system", "user", "assistant"}):
            raise _refused(row, "openai", f"a turn has the role {odd[0]}", "trl or axolotl")
        if any(turn.get("reasoning_content") for turn in row.messages):
            raise _refused(row, "openai", "an answer has reasoning, which it does not take", "trl or axolotl")
        if row.messages[-1]["role"] != "assistant":
            raise _refused(row, "openai", "its last turn is no answer", "trl or axolotl")
        turns = _turns(row.messages)
        if trained != answers(row):
            for k in answers(row):
                turns[k]["weight"] = int(k in trained)
        tools = {"tools": [_function(tool) for tool in json.loads(row.tools)]} if row.tools else {}
        told.append({"messages": turns, **tools})
    return Exported(told, _OPENAI, {})


FORMATS: Mapping[str, Callable[[Sequence[SelectedRow]], Exported]] = {
    "trl": for_trl,
    "axolotl": for_axolotl,
    "llama_factory": for_llama_factory,
    "openai": for_openai,
}


def _refused(row: SelectedRow, name: str, reason: str, other: str) -> UserError:
    return UserError(
        f"row '{row.id}' cannot be written for {name}: {reason}; use --format {other}, or leave the row "
        "out of the pool"
    )


def _only_last(row: SelectedRow) -> bool:
    """Say whether a row's last turn, and no other, carries loss."""
    return trained_turns(row) == [len(row.messages) - 1]


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return turns without our mark of what carries loss."""
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in messages]


def _more(rows: Sequence[SelectedRow], no_tools: str | None = None) -> list[Row]:
    """Return the columns beside the turns; every row has `tools`, as JSON text, where one has some."""
    with_tools = any(row.tools for row in rows)
    return [
        {**({"tools": row.tools or no_tools} if with_tools else {}), "id": row.id, WEIGHT: row.weight}
        for row in rows
    ]


def _check_turns_alternate(row: SelectedRow) -> None:
    """Raise UserError for a row that LLaMA-Factory would skip with a warning."""
    roles = [turn["role"] for turn in row.messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        reason = "after a system turn, question and answer have to alternate, and it has " + ", ".join(roles)
        raise _refused(row, "llama_factory", reason, "trl or axolotl")


def _with_thinking_inside(turn: Row) -> Row:
    """Return an answer with its reasoning as the thinking block that LLaMA-Factory's templates know."""
    reasoning = turn.get("reasoning_content")
    plain = {key: value for key, value in turn.items() if key != "reasoning_content"}
    if not reasoning:
        return plain
    return {**plain, "content": f"<think>\n{reasoning}\n</think>\n\n{turn['content']}"}


def _plain_tool(tool: Any) -> Any:
    """Return a tool with its parameters as JSON text, which axolotl reads: as a table they would be given the
    parameters of all other tools, too."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or "parameters" not in function:
        return tool
    return {**tool, "function": {**function, "parameters": json.dumps(function["parameters"])}}


def _function(tool: Any) -> Any:
    """Return a tool as OpenAI's chat format has it."""
    return tool if isinstance(tool, dict) and "type" in tool else {"type": "function", "function": tool}


_NO_ROW_WEIGHTS = (
    " does not read a weight per row; the run's stand in the column `gtp_weight`, for code of your own.\n"
)
_TRL = """```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("json", data_files={data}, split="train")
args = SFTConfig(output_dir="sft"%s)
SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer).train()
```
"""
_TRL_COMPLETION = (
    "TRL's SFTTrainer takes the loss of the completion alone, which is the last answer, as the run did.\n\n"
    + _TRL % ""
    + "\nTRL"
    + _NO_ROW_WEIGHTS
)
_TRL_MESSAGES = (
    "Some rows have several answers, and all of them carry loss: that takes `assistant_only_loss=True`, and\n"
    "a chat template that TRL knows or that marks answers with `{% generation %}`.\n\n"
    + _TRL % ", assistant_only_loss=True"
    + "\nTRL"
    + _NO_ROW_WEIGHTS
)
_AXOLOTL_YAML = """# For your configuration of axolotl; the path is relative to where it is started.
datasets:
  - path: {data}
    ds_type: json
    type: chat_template
    field_messages: messages
    message_field_training: train  # true for the answers that carry loss
    roles_to_train: []
    train_on_eos: turn
"""
_AXOLOTL = (
    "`axolotl.yaml` has the entry for `datasets` of a configuration. `train` marks what carries loss.\n\n"
    "axolotl" + _NO_ROW_WEIGHTS
)
_LLAMA_FACTORY = (
    "`dataset_info.json` describes the rows:\n\n"
    "```bash\nllamafactory-cli train config.yaml dataset_dir={folder} dataset=gtp_selected\n```\n\n"
    "LLaMA-Factory" + _NO_ROW_WEIGHTS
)
_MASK_HISTORY = "\nSet `mask_history: true`: only the last answer of a row carries loss.\n"
_OPENAI = """Upload `train.jsonl` with the purpose `fine-tune`. A line holds `messages`, and `tools` where
there are some; the service takes no further keys, so the run's weights are left out. `weight` 0 marks an
answer without loss.
"""
