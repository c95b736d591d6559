"""Build a multiple-choice task of lm-eval: each answer is scored by its log-likelihood after the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example, Message


class ChoiceMetric(Enum):
    """Names the headline metric of a multiple-choice task: accuracy, as it is or per character."""

    ACC = "acc"  # the answer with the largest summed log-likelihood
    ACC_NORM = "acc_norm"  # the same per character of the answer


def choice_task(
    name: str,
    docs: Sequence[Mapping[str, Any]],
    *,
    metric: ChoiceMetric,
    chat: bool,
    fewshot: Sequence[Mapping[str, Any]] = (),
    subtask: str = "",
) -> EvalTask:
    """Return a multiple-choice task. docs, fewshot: {id: str, query: str, choices: list[str], gold: index
    into choices}."""
    config = {
        "output_type": "multiple_choice",
        # Plain column names: a template would be run through Jinja and turn a query of digits into an index.
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        # In a chat the answer follows the generation prompt directly, as in training.
        "target_delimiter": "" if chat else "\n",
        "num_fewshot": len(fewshot),
        # lm-eval's default sampler draws doc by doc from one stream: prompts would change with sharding.
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": [
            {"metric": m.value, "aggregation": "mean", "higher_is_better": True} for m in ChoiceMetric
        ],
        "metadata": {"version": 1.0},
    }
    held_out = tuple(
        Example(
            str(doc["id"]),
            (Message("user", doc["query"]), Message("assistant", doc["choices"][doc["gold"]])),
            subtask,
        )
        for doc in docs
    )
    return EvalTask(
        name=name,
        metric=f"{metric.value},none",
        config=config,
        docs=tuple(docs),
        fewshot=tuple(fewshot),
        chat=chat,
        held_out=held_out,
    )
