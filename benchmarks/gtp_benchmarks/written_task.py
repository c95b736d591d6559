"""Build a task of lm-eval whose answers the model writes, each compared with the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example


def written_task(
    name: str,
    docs: Sequence[Mapping[str, Any]],
    *,
    pattern: str,
    until: Sequence[str],
    max_tokens: int,
    held_out: Sequence[Example] = (),
    metric: str = "exact_match",
) -> EvalTask:
    """Return a task in which the model writes. docs: {id: str, query: str, answer: str}.

    pattern: a regular expression whose first group is what counts of a written answer. until: texts that end
    an answer beside the end of turn. held_out: the same rows, for the held-out loss. metric: a mean over rows
    that lm-eval or gtp_exp/evaluation/text_metrics.py knows.
    """
    config = {
        "output_type": "generate_until",
        "doc_to_text": "query",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {"until": list(until), "do_sample": False, "max_gen_toks": max_tokens},
        "filter_list": [
            {
                "name": "answer",
                "filter": [
                    {"function": "regex", "regex_pattern": pattern, "fallback": ""},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    return EvalTask(name, f"{metric},answer", config, tuple(docs), held_out=tuple(held_out))
