"""Count the test rows that leaked into pool or target before every evaluation; refuse them in the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example
from gtp_exp.errors import UserError

NGRAM = 13  # words; the length at which GPT-3 and lm-eval call a shared run of words contamination
# Cut into blocks of 7, any run of 13 words holds one block whole (13 = 2 * 7 - 1): a row whose blocks are all
# new to the test shares nothing with it, and is done with after one look-up per 7 words.
_BLOCK = (NGRAM + 1) // 2

_SENTENCE_END = ".?!…。？！"
_AROUND_WORDS = ".,;:?!…。，？！\"'`“”‘’()[]{}"
_SIGNS = frozenset(
    "+ - – — − * / = < > ^ & | ~ % $ # @ • · × ÷ ≤ ≥ ≠ → ** -- --- == != <= >= => -> && || //".split()
)


class TestRows:
    """Indexes the test rows of all tasks once, so that any number of rows can be compared with them."""

    __test__ = False  # not a class of tests, whatever its name tells pytest

    def __init__(self, tasks: Sequence[EvalTask]) -> None:
        self._prompts: set[str] = set()
        self._blocks: set[int] = set()  # hashes: the runs of words of a large test would not fit as tuples
        self._runs: set[int] = set()
        for task in tasks:
            for example in task.held_out:
                self._prompts.add(_question(example.prompt))
                words = _words(example)
                self._blocks.update(_hashes(words, _BLOCK))
                self._runs.update(_hashes(words, NGRAM))
        self._prompts.discard("")

    def asks(self, example: Example) -> bool:
        """Return whether the row's prompt is that of a test row.

        Case, white space and the sentence's end do not count, every other character does: `i - 5` and `i + 5`
        are different questions.
        """
        return _question(example.prompt) in self._prompts

    def shares_run(self, example: Example) -> bool:
        """Return whether the row shares NGRAM consecutive words with a test row.

        Words stand between white space; case and the punctuation around them do not count, signs do.
        """
        words = _words(example)
        last = len(words) - NGRAM
        for at in range(0, last + _BLOCK, _BLOCK) if last >= 0 else ():
            if hash(words[at : at + _BLOCK]) in self._blocks:
                # The runs that hold this block whole.
                for start in range(max(0, at + _BLOCK - NGRAM), min(at, last) + 1):
                    if hash(words[start : start + NGRAM]) in self._runs:
                        return True
        return False


def leakage(tests: TestRows, parts: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """Return, for each part (target, selected, pool), how many rows it has and how many overlap with the
    test.

    `same_prompt` counts the rows with the prompt of a test row, `shared_ngram` those that share NGRAM
    consecutive words with one. Raises UserError where a target row asks what a test row asks.
    """
    report = {}
    for name, examples in parts.items():
        same = [example for example in examples if tests.asks(example)]
        if name == "target" and same:
            raise UserError(
                f"{len(same)} target rows are test rows (the first: '{same[0].id}'); a selector must not see "
                "the test: take them out of the benchmark's validation rows"
            )
        shared = sum(map(tests.shares_run, examples))
        report[name] = {"rows": len(examples), "same_prompt": len(same), "shared_ngram": shared}
    return report


def _question(text: str) -> str:
    """Return the text in the form in which prompts are compared; empty where it asks nothing."""
    text = " ".join(text.casefold().split())
    bare = text.rstrip(_SENTENCE_END).rstrip()
    # "5!" is a factorial, not an exclamation.
    return f"{bare}!" if bare[-1:].isdigit() and text[len(bare) :].startswith("!") else bare


def _words(example: Example) -> tuple[str, ...]:
    """Return the words of a row, a sign that stands alone joined to the word after it.

    `1 - 2` becomes `1`, `-2`: signs are told apart, and a list with dashes has no more words than one
    without.
    """
    text = " ".join([message.content for message in example.messages]).casefold()
    words = [bare for word in text.split() if (bare := word.strip(_AROUND_WORDS))]
    if _SIGNS.isdisjoint(words):
        return tuple(words)
    joined: list[str] = []
    signs = ""
    for word in words:
        if word in _SIGNS:
            signs += word
        else:
            joined.append(signs + word)
            signs = ""
    return tuple(joined)


def _hashes(words: tuple[str, ...], n: int) -> Iterable[int]:
    """Yield the hash of every run of n words."""
    return (hash(words[i : i + n]) for i in range(len(words) - n + 1))


def flagged(report: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """Yield one line for each part that overlaps with the test."""
    for name, counts in report.items():
        if counts["same_prompt"] or counts["shared_ngram"]:
            yield (
                f"{name}: {counts['same_prompt']} of {counts['rows']} rows have the prompt of a test row, "
                f"{counts['shared_ngram']} share {NGRAM} words in a row with one"
            )
