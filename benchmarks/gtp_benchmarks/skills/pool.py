"""The pool: many skills in unequal shares, with wrong answers, copies, rephrasings and decoys planted in it.

What was planted is in `Pool.hidden`, which only reports read; neither ids nor the order of rows give it away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from gtp_benchmarks.skills.chit_chat import CHIT_CHAT
from gtp_benchmarks.skills.question import Question, Skill, Split
from gtp_benchmarks.skills.registry import SKILLS, check_skills
from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.sources.base import DataSource
from gtp_exp.errors import UserError

# An original is drawn for copying with a density that falls off as rank^(1/_SKEW - 1): as in web data, a few
# rows come many times and most once.
_SKEW = 2.0
_REFRAMED_SHARE = 0.3  # of the rephrased rows keep the phrasing and change only what stands around it
_PATIENCE = 200  # draws in a row without a new wording before they count as used up


class Duplicate(Enum):
    """Names how a planted copy differs from its original."""

    EXACT = "exact"  # the same text
    REPHRASED = "rephrased"  # the same question and answer in another wording


class Kind(Enum):
    """Names what a row is beside the target rows of its skill."""

    SKILL = "skill"  # asks for a skill in words that target rows have, too
    REWORDED = "reworded"  # asks for a skill in words that no target or test row has
    DECOY = "decoy"  # asks for something else about the sentences of another skill
    CHAT = "chat"


@dataclass(frozen=True)
class SkillsPool(DataSource):
    """Describes the generated pool.

    Shares are of all rows; `corrupted_share` is of the distinct rows whose answer can be wrong.
    """

    rows: int = 1000
    seed: int = 0
    mix: dict[str, float] = field(
        default_factory=lambda: {
            "arithmetic": 4,
            "multiplication": 3,
            "comparison": 5,
            "sequence": 3,
            "roman_numerals": 2,
            "unit_conversion": 3,
            "weekday": 2,
            "clock": 2,
            "change": 3,
            "sorting": 4,
            "letter_count": 5,
            "last_letters": 3,
            "reversal": 4,
            "plural": 2,
            "antonym": 2,
            "odd_one_out": 3,
            "category": 2,
            "longest_word": 2,
            "position": 3,
            "contains": 2,
            "boolean": 4,
            "ranking": 3,
            "desk": 7,
            "shelf": 6,
            "review": 3,
            "rewriting": 7,
            "word_count": 6,
            "continuation": 7,
            "reply": 6,
        }
    )  # relative number of rows by skill; skills left out do not occur
    chit_chat_share: float = 0.1
    corrupted_share: float = 0.05
    duplicate_share: float = 0.1
    near_duplicate_share: float = 0.1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError(f"dataset.rows={self.rows} makes an empty pool; ask for at least 1 row")
        for name in ("chit_chat_share", "corrupted_share", "duplicate_share", "near_duplicate_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"dataset.{name}={getattr(self, name)} must be at least 0 and below 1")
        copies = self.duplicate_share + self.near_duplicate_share
        if copies + self.chit_chat_share >= 1:
            raise UserError(
                f"dataset.duplicate_share, near_duplicate_share and chit_chat_share add up to "
                f"{copies + self.chit_chat_share:g}, which leaves no row for the skills; lower them"
            )
        check_skills(self.mix, "dataset.mix")
        if not self.mix or any(share < 0 for share in self.mix.values()) or sum(self.mix.values()) <= 0:
            raise UserError(f"dataset.mix={self.mix} needs at least one positive share and no negative one")

    def load(self) -> Pool:
        """Generate the pool; the same options give the same rows."""
        rng = Random(self.seed)
        n_exact = round(self.rows * self.duplicate_share)
        n_rephrased = round(self.rows * self.near_duplicate_share)
        originals = _originals(self._counts(self.rows - n_exact - n_rephrased), rng)
        _corrupt(originals, self.corrupted_share, rng)
        rng.shuffle(originals)
        taken = {row.prompt for row in originals}
        copies = [
            *(_copy(originals, Duplicate.REPHRASED, taken, rng) for _ in range(n_rephrased)),
            *(_copy(originals, Duplicate.EXACT, taken, rng) for _ in range(n_exact)),
        ]
        rows = originals + copies
        rng.shuffle(rows)
        return _as_pool(rows, self.seed)

    def _counts(self, n: int) -> dict[str, int]:
        """Return the distinct rows by skill; the rounding remainder goes to the largest fractions."""
        n_chat = min(n, round(self.rows * self.chit_chat_share))
        total = sum(self.mix.values())
        exact = {name: (n - n_chat) * share / total for name, share in self.mix.items()}
        counts = {name: int(value) for name, value in exact.items()}
        by_fraction = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
        for name in by_fraction[: n - n_chat - sum(counts.values())]:
            counts[name] += 1
        return {**counts, CHIT_CHAT.name: n_chat}


@dataclass
class _Row:
    skill: Skill
    question: Question
    wording: int
    prompt: str
    answer: str
    corrupted: bool = False
    original: _Row | None = None
    duplicate: Duplicate | None = None

    @property
    def kind(self) -> Kind:
        if self.skill is CHIT_CHAT or self.skill.decoy:
            return Kind.CHAT if self.skill is CHIT_CHAT else Kind.DECOY
        asked = self.skill.wordings(self.question, Split.TARGET)
        return Kind.SKILL if self.wording < asked else Kind.REWORDED

    @property
    def label(self) -> str | None:
        """The label that the row teaches: none where its answer is wrong."""
        return None if self.corrupted else self.question.label or None


def _originals(counts: Mapping[str, int], rng: Random) -> list[_Row]:
    rows: list[_Row] = []
    for name, count in counts.items():
        skill = SKILLS.get(name, CHIT_CHAT)
        # Small talk is never tested, so all of it may go into the pool.
        fresh = _small_talk(rng) if skill is CHIT_CHAT else skill.questions(Split.POOL, rng)
        taken: set[str] = set()
        while count:
            question = next(fresh)
            wording = rng.randrange(skill.wordings(question))
            prompt = skill.prompt(question, wording, rng)
            if prompt not in taken:
                taken.add(prompt)
                rows.append(_Row(skill, question, wording, prompt, question.answer))
                count -= 1
    return rows


def _small_talk(rng: Random) -> Iterator[Question]:
    while True:
        yield CHIT_CHAT.draw(rng)


def _corrupt(rows: list[_Row], share: float, rng: Random) -> None:
    """Replace answers by wrong ones of the same form. Small talk has no wrong answer."""
    checkable = [row for row in rows if row.skill is not CHIT_CHAT]
    for row in rng.sample(checkable, round(share * len(checkable))):
        row.answer, row.corrupted = rng.choice(row.question.distractors), True


def _copy(originals: list[_Row], kind: Duplicate, taken: set[str], rng: Random) -> _Row:
    """Return a row again, its answer included: the copy of a corrupted row is corrupted too."""
    for _ in range(_PATIENCE):
        original = originals[int(len(originals) * rng.random() ** _SKEW)]
        wording, prompt = original.wording, original.prompt
        if kind is Duplicate.EXACT:
            break
        if rng.random() >= _REFRAMED_SHARE:
            wording = rng.randrange(original.skill.wordings(original.question))
        prompt = original.skill.prompt(original.question, wording, rng)
        if prompt not in taken:
            taken.add(prompt)
            break
    else:
        raise UserError(
            f"the {len(originals)} distinct rows have no more than about {len(taken) - len(originals)} other "
            "wordings; lower dataset.near_duplicate_share"
        )
    return _Row(
        original.skill,
        original.question,
        wording,
        prompt,
        original.answer,
        original.corrupted,
        original,
        kind,
    )


def _as_pool(rows: list[_Row], seed: int) -> Pool:
    ids = {id(row): _opaque_id(seed, i) for i, row in enumerate(rows)}
    examples = tuple(
        Example(ids[id(row)], (Message("user", row.prompt), Message("assistant", row.answer))) for row in rows
    )
    hidden = {
        ids[id(row)]: {
            "skill": row.skill.name,
            "label": row.label,
            "kind": row.kind.value,
            "corrupted": row.corrupted,
            "duplicate_of": None if row.original is None else ids[id(row.original)],
            "duplicate": "no" if row.duplicate is None else row.duplicate.value,
        }
        for row in rows
    }
    return Pool(examples, hidden)


def _opaque_id(seed: int, position: int) -> str:
    return hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=6).hexdigest()
