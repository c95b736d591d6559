"""The benchmark of the skills: a few target rows, and test questions that occur in no pool."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from gtp_benchmarks.choice_task import ChoiceMetric, choice_task
from gtp_benchmarks.skills.question import Question, Skill, Split
from gtp_benchmarks.skills.registry import SKILLS, check_skills
from gtp_benchmarks.written_task import written_task
from gtp_exp.data.benchmark import Answers, EvalTask
from gtp_exp.data.examples import Example, Message
from gtp_exp.errors import UserError


@dataclass(frozen=True)
class SkillsBenchmark:
    """Row counts are per skill.

    A generation task asks the first questions of the skill's choice task again and lets the model write the
    answer; its held-out loss would be the choice task's, so it has none.
    """

    answers: ClassVar[Answers] = Answers.CHOICES

    skills: list[str] = field(default_factory=lambda: ["desk", "shelf", "review"])
    in_domain: bool = False  # the target is the pool itself
    target_rows: int = 14
    test_rows: int = 120
    generation_skills: list[str] = field(
        default_factory=lambda: ["desk", "shelf"]
    )  # these get an exact-match generation task too
    generation_rows: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        check_skills(self.skills, "benchmark.skills")
        if not self.skills or len(set(self.skills)) != len(self.skills):
            raise UserError(f"benchmark.skills={self.skills} must name at least one skill, each once")
        for name in self.generation_skills:
            if name not in self.skills:
                raise UserError(
                    f"benchmark.generation_skills: {name!r} is not in benchmark.skills={self.skills}"
                )
        if self.target_rows < 1 and not self.in_domain:
            raise UserError(
                f"benchmark.target_rows={self.target_rows} gives the selector no target; use 5 or "
                "so, or aim at the pool itself by benchmark.in_domain=true"
            )
        if self.test_rows < 1:
            raise UserError(f"benchmark.test_rows={self.test_rows} leaves nothing to test on; use 100 or so")
        if self.generation_skills and not 1 <= self.generation_rows <= self.test_rows:
            raise UserError(
                f"benchmark.generation_rows={self.generation_rows} must lie between 1 and "
                f"test_rows={self.test_rows}: the generation task reuses the test questions "
                "(benchmark.generation_skills=[] leaves it out)"
            )

    def target(self) -> tuple[Example, ...] | None:
        """Return the rows that a selector may see."""
        if self.in_domain:
            return None
        return tuple(
            Example(
                f"target-{name}-{i}",
                (Message("user", prompt), Message("assistant", question.answer)),
                subtask=name,
            )
            for name in self.skills
            for i, (question, prompt) in enumerate(self._asked(SKILLS[name], Split.TARGET, self.target_rows))
        )

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return the test tasks."""
        tasks = []
        for name in self.skills:
            rng = Random(f"{self.seed}:{name}:choices")
            docs = tuple(
                _doc(f"test-{name}-{i}", question, prompt, rng)
                for i, (question, prompt) in enumerate(self._asked(SKILLS[name], Split.TEST, self.test_rows))
            )
            tasks.append(
                choice_task(f"skills_{name}", docs, metric=ChoiceMetric.ACC, chat=True, subtask=name)
            )
            if name in self.generation_skills:
                tasks.append(_generation_task(f"skills_{name}_generation", docs[: self.generation_rows]))
        return tuple(tasks)

    def _asked(self, skill: Skill, split: Split, n: int) -> list[tuple[Question, str]]:
        # One stream per skill and split: another skill or more target rows leave the questions as they are.
        rng = Random(f"{self.seed}:{skill.name}:{split.value}")
        fresh, wordings = (
            skill.questions(split, rng),
            Random(f"{self.seed}:{skill.name}:{split.value}:wordings"),
        )
        asked = []
        for _ in range(n):
            question = next(fresh)
            wording = wordings.randrange(skill.wordings(question, split))
            asked.append((question, skill.prompt(question, wording, wordings)))
        return asked


def _doc(id: str, question: Question, prompt: str, rng: Random) -> dict[str, Any]:
    choices = [question.answer, *question.distractors]
    rng.shuffle(choices)
    return {"id": id, "query": prompt, "choices": choices, "gold": choices.index(question.answer)}


def _generation_task(name: str, docs: tuple[dict[str, Any], ...]) -> EvalTask:
    longest = max(len(doc["choices"][doc["gold"]]) for doc in docs)
    return written_task(
        name,
        [{"id": d["id"], "query": d["query"], "answer": d["choices"][d["gold"]]} for d in docs],
        # The whole line but for blanks around it and a full stop: the answer alone counts.
        pattern=r"^\s*(.*?)[\s.]*$",
        # No answer has a line break; a character is at most one token here, and the end of turn is one more.
        until=["\n"],
        max_tokens=min(longest, 24) + 1,
    )
