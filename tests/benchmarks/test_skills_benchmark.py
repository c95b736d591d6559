"""The benchmark of the skills: what is tested is in no pool, and lm-eval scores it as stated."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from gtp_benchmarks.skills import SkillsBenchmark, SkillsPool
from gtp_benchmarks.skills.question import CLOSERS, OPENERS, Question, Split
from gtp_benchmarks.skills.registry import SKILLS
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError

SETTINGS = SkillsBenchmark(
    skills=list(SKILLS),
    in_domain=False,
    target_rows=6,
    test_rows=60,
    generation_skills=["comparison", "boolean"],
    generation_rows=20,
    seed=5,
)


@pytest.fixture(scope="module")
def tasks():
    return {task.name: task for task in SETTINGS.tasks()}


def test_there_is_a_choice_task_per_skill_and_a_generation_task_where_asked(tasks):
    choices = {f"skills_{name}" for name in SKILLS}
    assert set(tasks) == choices | {"skills_comparison_generation", "skills_boolean_generation"}
    assert all(len(tasks[name].docs) == 60 for name in choices)


def test_no_test_or_target_question_is_in_a_pool_in_any_wording(tasks):
    pools = [
        SkillsPool(1500, seed, {n: 1.0 for n in SKILLS}, 0.05, 0.1, 0.05, 0.1).load() for seed in range(3)
    ]
    seen = {core(e.prompt) for pool in pools for e in pool.examples}
    assert any(
        w in seen for q in SKILLS["boolean"].questions(Split.POOL, Random(0)) for w in wordings("boolean", q)
    )
    for name, skill in SKILLS.items():
        asked = {split: SETTINGS._asked(skill, split, 60) for split in (Split.TARGET, Split.TEST)}
        assert {p for _, p in asked[Split.TEST]} == {doc["query"] for doc in tasks[f"skills_{name}"].docs}
        ways = {split: {w for q, _ in rows for w in wordings(name, q)} for split, rows in asked.items()}
        assert all(core(p) in ways[split] for split, rows in asked.items() for _, p in rows)
        assert not ways[Split.TARGET] & ways[Split.TEST]
        assert not ways[Split.TARGET] & seen and not ways[Split.TEST] & seen


def wordings(name: str, question: Question) -> set[str]:
    return {core(p.format(**question.slots)) for p in SKILLS[name].phrasings[question.form]}


def core(prompt: str) -> str:
    """The prompt without opener and closer."""
    for opener in OPENERS:
        prompt = prompt.removeprefix(opener)
    for closer in CLOSERS:
        prompt = prompt.removesuffix(closer)
    return prompt


def test_the_held_out_rows_are_the_test_rows_with_their_gold_answers(tasks):
    for name in SKILLS:
        task = tasks[f"skills_{name}"]
        for doc, example in zip(task.docs, task.held_out, strict=True):
            assert (example.prompt, example.completion) == (doc["query"], doc["choices"][doc["gold"]])
            assert example.subtask == name


def test_the_gold_answer_is_at_any_place(tasks):
    places = Counter(d["gold"] for t in tasks.values() for d in t.docs if len(d.get("choices", ())) == 4)
    assert set(places) == {0, 1, 2, 3} and min(places.values()) > 0.2 * sum(places.values())


def test_target_rows_are_grouped_by_skill():
    target = SETTINGS.target()
    assert target is not None
    assert Counter(e.subtask for e in target) == {name: 6 for name in SKILLS}
    assert len({e.id for e in target}) == len(target)


def test_in_domain_the_pool_is_the_target():
    assert replace(SETTINGS, in_domain=True, target_rows=0).target() is None


def test_more_target_rows_or_skills_change_no_test_question(tasks):
    other = replace(SETTINGS, skills=["weekday", "boolean"], target_rows=9, generation_skills=[])
    for task in other.tasks():
        assert task.docs == tasks[task.name].docs
    before, after = SETTINGS.target() or (), other.target() or ()
    assert {e for e in before if e.subtask == "weekday"} <= set(after)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"skills": ["telepathy"]}, "telepathy"),
        ({"skills": []}, "benchmark.skills"),
        ({"skills": ["boolean", "boolean"]}, "benchmark.skills"),
        ({"target_rows": 0}, "benchmark.target_rows=0"),
        ({"test_rows": 0}, "benchmark.test_rows=0"),
        ({"generation_skills": ["weekday"], "skills": ["boolean"]}, "weekday"),
        ({"generation_rows": 100}, "benchmark.generation_rows=100"),
    ],
)
def test_impossible_settings_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        replace(SETTINGS, **change)


@pytest.fixture(scope="module")
def lm_eval_run(tmp_path_factory):
    """Runs a task through lm-eval with answers from a function instead of a model."""
    import json

    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Answers(LM):
        def __init__(self, loglikelihood, generate):
            super().__init__()
            self._loglikelihood, self._generate = loglikelihood, generate

        def loglikelihood(self, requests):
            return [(self._loglikelihood(*r.args), False) for r in requests]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

        def generate_until(self, requests):
            return [self._generate(r.args[0]) for r in requests]

    def run(task, loglikelihood=None, generate=None):
        folder = tmp_path_factory.mktemp("task")
        data = folder / "test.jsonl"
        data.write_text("".join(json.dumps(dict(doc)) + "\n" for doc in task.docs))
        config = {
            "task": task.name,
            "dataset_path": "json",
            "test_split": "test",
            **task.config,
            "dataset_kwargs": {"data_files": {"test": str(data)}},
        }
        (folder / "task.yaml").write_text(json.dumps(config))
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        out = lm_eval.simple_evaluate(
            model=Answers(loglikelihood, generate), tasks=[task.name], task_manager=manager, bootstrap_iters=0
        )
        return out["results"][task.name][task.metric]

    return run


def test_lm_eval_scores_the_right_choice(tasks, lm_eval_run):
    task = tasks["skills_weekday"]
    gold = {doc["query"]: doc["choices"][doc["gold"]] for doc in task.docs}
    assert lm_eval_run(task, loglikelihood=lambda prompt, answer: float(gold[prompt] == answer.strip())) == 1
    assert lm_eval_run(task, loglikelihood=lambda prompt, answer: float(gold[prompt] != answer.strip())) == 0


def framed(task, frames):
    """A generator that writes the right answer, in one frame after the other."""
    gold = {doc["query"]: doc["answer"] for doc in task.docs}
    order = itertools.cycle(frames)
    return lambda prompt: next(order).format(gold[prompt])


def test_lm_eval_takes_a_written_answer_with_blanks_and_full_stops(tasks, lm_eval_run):
    task = tasks["skills_boolean_generation"]
    assert lm_eval_run(task, generate=framed(task, ["{}", " {}.", "{} \n", "{}...", "\n{}"])) == 1


def test_lm_eval_takes_nothing_but_the_answer(tasks, lm_eval_run):
    task = tasks["skills_comparison_generation"]
    frames = ["The answer is {}", "{} or not", "", ".", "x{}", "{0}\n{0}"]
    assert lm_eval_run(task, generate=framed(task, frames)) == 0


def test_a_real_model_runs_through_every_kind_of_task(tiny, tmp_path):
    """Random weights: the numbers say nothing, but prompts, choices and metrics go all the way."""
    from gtp_exp.evaluation.tasks import evaluate

    small = replace(
        SETTINGS, skills=["boolean"], test_rows=4, generation_skills=["boolean"], generation_rows=2
    )
    loaded = tiny.load()
    for task in small.tasks():
        held_out = tokenize(task.held_out, tiny.tokenizer, max_length=tiny.config.max_length).examples
        metrics = evaluate(task, loaded, held_out=held_out, batch_size=4, directory=tmp_path)
        assert 0 <= metrics[metrics["headline"]] <= 1
        assert ("nats_per_token" in metrics) == bool(task.held_out)
