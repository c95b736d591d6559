"""Count the test rows that leaked into pool or target before every evaluation; refuse them in the target.

A row is compared turn by turn, so that neither a system prompt nor an earlier turn hides a test question.
Only where the test itself asks one question about several contexts, and answers it differently, is the whole
prompt compared: `What is the passage about?` is asked of a passage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example, Message, plain_text
from gtp_exp.data.words import comparable, words
from gtp_exp.errors import UserError

# Words, or characters of a script without blanks; the length at which GPT-3 and lm-eval call a shared run of
# words contamination.
NGRAM = 13
STANDS_ALONE = 4  # words from which a later turn is a question of its own; "And why?" needs what came before
# Cut into blocks of 7, any run of 13 words holds one block whole (13 = 2 * 7 - 1): a row whose blocks are all
# new to the test shares nothing with it, and is done with after one look-up per 7 words.
_BLOCK = (NGRAM + 1) // 2

_SENTENCE_END = ".?!…。？！．។၊။།؟۔।॥"
_AROUND_WORDS = ".,;:?!…。，、；：？！．・「」『』（）《》〈〉【】\"'`“”‘’()[]{}។៕၊။།؟،؛۔।॥"
_SIGNS = frozenset(
    "+ - – — − * / = < > ^ & | ~ % $ # @ • · × ÷ ≤ ≥ ≠ → ** -- --- == != <= >= => -> && || //".split()
)


Asked = tuple[frozenset[str], str]  # what stands before a question in a test row, and its answer there


class TestRows:
    """Indexes the test rows of all tasks once, so that any number of rows can be compared with them."""

    __test__ = False  # not a class of tests, whatever its name tells pytest

    def __init__(self, tasks: Sequence[EvalTask]) -> None:
        asked: dict[tuple[str, ...], list[Asked]] = defaultdict(list)  # each question a run of user turns
        self._blocks: set[int] = set()  # hashes: the runs of words of a large test would not fit as tuples
        self._runs: set[int] = set()
        for task in tasks:
            for example in task.held_out:
                said = _said(example)
                for question in questions(_said(example, "user") or said):
                    context = frozenset(said).difference([""])
                    asked[question].append((context, _question(example.completion)))
                # Its system prompt is no part of the test: a pool may have the same.
                test_words = _words([m for m in example.messages if m.role != "system"])
                self._blocks.update(_hashes(test_words, _BLOCK))
                self._runs.update(_hashes(test_words, NGRAM))
        self._contexts = {question: contexts(rows) for question, rows in asked.items()}
        self._lengths = sorted({len(question) for question in self._contexts})

    def asks(self, example: Example) -> bool:
        """Return whether a turn of the row before its last answer is the question of a test row.

        Case, white space and the sentence's end do not count, every other character does: `i - 5` and `i + 5`
        are different questions. A short last turn of a longer test conversation (`And why?`) is a question
        only together with the user turns before it, and one that the test answers differently in different
        contexts only together with the context of a test row, wherever the row has it.
        """
        turns, instead = _said(example, "user"), _said(example, "system")
        asked = [*runs(turns, self._lengths), *((turn,) for turn in instead)]
        needed = [context for question in asked for context in self._contexts.get(question, ())]
        said = {*_said(example)} if needed else set[str]()
        return any(context <= said for context in needed)

    def shares_run(self, example: Example) -> bool:
        """Return whether the row shares NGRAM consecutive words with a test row.

        Words stand between white space, and characters of a script without it are words; case and the
        punctuation around them do not count, signs do.
        """
        row_words = _words(example.messages)
        last = len(row_words) - NGRAM
        for at in range(0, last + _BLOCK, _BLOCK) if last >= 0 else ():
            if hash(row_words[at : at + _BLOCK]) in self._blocks:
                # The runs that hold this block whole.
                for start in range(max(0, at + _BLOCK - NGRAM), min(at, last) + 1):
                    if hash(row_words[start : start + NGRAM]) in self._runs:
                        return True
        return False


def leakage(tests: TestRows, parts: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """Return, for each part (target, selected, pool), how many rows it has and how many overlap with the
    test.

    `same_prompt` counts the rows that ask a test row's question, `shared_ngram` those that share NGRAM
    consecutive words with one. Raises UserError where a target row asks what a test row asks.
    """
    report = {}
    for name, examples in parts.items():
        same = [example for example in examples if tests.asks(example)]
        if name == "target" and same:
            raise UserError(
                f"{len(same)} target rows are test rows (the first: '{same[0].id}'); a selector must not see "
                "the test: take them out of the benchmark's target, or of its test"
            )
        shared = sum(map(tests.shares_run, examples))
        report[name] = {"rows": len(examples), "same_prompt": len(same), "shared_ngram": shared}
    return report


def questions(turns: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Return what a conversation with these user turns asks: all of them, and the last alone where it stands
    for itself."""
    asked = {turns} if any(turns) else set()
    return asked | {turns[-1:]} if asked and len(_bare(turns[-1])) >= STANDS_ALONE else asked


def contexts(rows: Sequence[Asked]) -> set[frozenset[str]]:
    """Return, of the test rows that ask one question, what has to stand before it for another row to ask the
    same: nothing where all have one answer, else what tells each row's context from the others'."""
    if len({answer for _, answer in rows}) == 1:
        return {frozenset()}
    common = frozenset.intersection(*(context for context, _ in rows))
    return {context - common for context, _ in rows}


def runs(turns: tuple[str, ...], lengths: Iterable[int]) -> Iterable[tuple[str, ...]]:
    """Yield every run of consecutive turns of these lengths."""
    return (turns[i : i + n] for n in lengths for i in range(len(turns) - n + 1))


def _said(example: Example, *roles: str) -> tuple[str, ...]:
    """Return what is said before the last answer, by these roles or by all, as questions are compared."""
    return tuple(_question(m.content) for m in example.messages[:-1] if not roles or m.role in roles)


def _question(text: str) -> str:
    """Return the text in the form in which questions are compared; empty where it asks nothing."""
    text = " ".join(words(comparable(text)))  # blanks beside a character that is a word do not count
    bare = text.rstrip(f"{_SENTENCE_END} ")
    # "5!" is a factorial, not an exclamation.
    return f"{bare}!" if bare[-1:].isdigit() and text[len(bare) :].startswith("!") else bare


def _words(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the words of a conversation and its reasoning, a sign that stands alone joined to the word after
    it.

    `1 - 2` becomes `1`, `-2`: signs are told apart, and a list with dashes has no more words than one
    without.
    """
    text = comparable(plain_text(messages))
    bare_words = _bare(text)
    if _SIGNS.isdisjoint(bare_words):
        return tuple(bare_words)
    joined: list[str] = []
    signs = ""
    for word in bare_words:
        if word in _SIGNS:
            signs += word
        else:
            joined.append(signs + word)
            signs = ""
    return tuple(joined)


def _bare(text: str) -> list[str]:
    """Return the words of a text without the punctuation around them."""
    return [bare for word in words(text) if (bare := word.strip(_AROUND_WORDS))]


def _hashes(all_words: tuple[str, ...], n: int) -> Iterable[int]:
    """Yield the hash of every run of n words."""
    return (hash(all_words[i : i + n]) for i in range(len(all_words) - n + 1))


def flagged(report: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """Yield one line for each part that overlaps with the test."""
    for name, counts in report.items():
        if counts["same_prompt"] or counts["shared_ngram"]:
            yield (
                f"{name}: {counts['same_prompt']} of {counts['rows']} rows ask what a test row asks, "
                f"{counts['shared_ngram']} share {NGRAM} words in a row with one"
            )
