"""List all skills by name, in the order in which reports and tasks list them."""

from __future__ import annotations

from collections.abc import Iterable

from gtp_benchmarks.skills.logic_skills import LOGIC_SKILLS
from gtp_benchmarks.skills.number_skills import NUMBER_SKILLS
from gtp_benchmarks.skills.question import Skill
from gtp_benchmarks.skills.sentence_skills import SENTENCE_SKILLS
from gtp_benchmarks.skills.word_skills import WORD_SKILLS
from gtp_exp.errors import UserError

_ALL = (*NUMBER_SKILLS, *WORD_SKILLS, *LOGIC_SKILLS, *SENTENCE_SKILLS)
SKILLS: dict[str, Skill] = {skill.name: skill for skill in _ALL}


def check_skills(names: Iterable[str], key: str) -> None:
    """Raise UserError for a name that is no skill. key: where the names stand in the configuration."""
    unknown = [name for name in names if name not in SKILLS]
    if unknown:
        raise UserError(f"{key} names no skill: {', '.join(unknown)}; known skills: {', '.join(SKILLS)}")
