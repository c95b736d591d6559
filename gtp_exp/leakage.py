"""Did test rows leak into the pool or the target? Counted before every evaluation, refused for the target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example
from gtp_exp.errors import UserError

NGRAM = 13  # words; the length at which GPT-3 and lm-eval call a shared run of words contamination


def leakage(tasks: Sequence[EvalTask], parts: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """For each part (target, selected, pool): its rows, those with the prompt of a test row (`same_prompt`),
    and those that share NGRAM words in a row with one (`shared_ngram`). Case and punctuation do not count.

    Raises UserError where a target row asks what a test row asks.
    """
    tests = [example for task in tasks for example in task.held_out]
    prompts = {_words(example.prompt) for example in tests}
    grams = set().union(*(_ngrams(_text(example)) for example in tests))
    report = {}
    for name, examples in parts.items():
        same = [example for example in examples if _words(example.prompt) in prompts]
        shared = sum(not grams.isdisjoint(_ngrams(_text(example))) for example in examples)
        report[name] = {"rows": len(examples), "same_prompt": len(same), "shared_ngram": shared}
        if name == "target" and same:
            raise UserError(
                f"{len(same)} target rows are test rows (the first: '{same[0].id}'); a selector must not see "
                "the test: take them out of the benchmark's validation rows"
            )
    return report


def _text(example: Example) -> str:
    return " ".join(message.content for message in example.messages)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def _ngrams(text: str) -> set[int]:
    """Hashes: the runs of words of a large test set would not fit as tuples."""
    words = _words(text)
    return {hash(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


def flagged(report: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """One line for each part with an overlap."""
    for name, counts in report.items():
        if counts["same_prompt"] or counts["shared_ngram"]:
            yield (
                f"{name}: {counts['same_prompt']} of {counts['rows']} rows have the prompt of a test row, "
                f"{counts['shared_ngram']} share {NGRAM} words in a row with one"
            )
