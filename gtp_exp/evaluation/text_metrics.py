"""Compare a written answer with the right one, row by row: ROUGE-L and chrF, between 0 and 1.

lm-eval brings chrF of a whole corpus and no ROUGE; a mean over rows has an interval over rows. ROUGE-L is the
F-measure of the longest common subsequence of words (Lin 2004) by rouge_score, which itself knows the letters
a to z alone: here words are those of any script, and a script without blanks counts by characters. chrF is
sacrebleu's of one sentence (Popović 2015: F2 of character 1- to 6-grams).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import regex

from gtp_exp.data.words import comparable, words


def register() -> None:
    """Let tasks of lm-eval name the metrics of this module; called before a task is read."""
    from lm_eval.api.registry import metric_registry, register_metric

    for metric in (rouge_l, sentence_chrf):
        if metric.__name__ not in metric_registry:
            register_metric(metric=metric.__name__, higher_is_better=True, aggregation="mean")(metric)


def rouge_l(references: Sequence[str], predictions: Sequence[str], **_: Any) -> float:
    """Return the ROUGE-L of one written answer; of answers without a word, whether they are the same."""
    reference, prediction = references[0], predictions[0]
    if not Words().tokenize(reference):
        return float(words(comparable(reference)) == words(comparable(prediction)))
    return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


def sentence_chrf(references: Sequence[str], predictions: Sequence[str], **_: Any) -> float:
    """Return the chrF of one written answer."""
    return float(_chrf()(predictions[0], [references[0]]).score) / 100


class Words:
    """Cuts a text into words for rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words in lower case, without punctuation."""
        return regex.findall(r"[^\W_]+", " ".join(words(comparable(text))))


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())


@functools.cache
def _chrf() -> Callable[..., Any]:
    from sacrebleu import sentence_chrf

    return sentence_chrf
