"""Every YAML of the benchmarks builds, agrees with the skills, and names what lm-eval really bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
from options import option as settings

from gtp_benchmarks.skills.registry import SKILLS
from gtp_exp.config import build
from gtp_exp.errors import UserError


@pytest.mark.parametrize("name", ["skills_target", "skills_in_domain", "mmlu", "bbh", "tydiqa", "gsm8k"])
def test_a_benchmark_builds_from_its_yaml(name):
    build(settings("benchmark", name), "benchmark")


def test_jsonl_choice_asks_for_its_test_file():
    node = settings("benchmark", "jsonl_choice")
    with pytest.raises(UserError, match="lacks test; give benchmark.test=VALUE"):
        build(node, "benchmark")
    build({**node, "validation": "v.jsonl", "test": "t.jsonl"}, "benchmark")


def test_the_pool_builds_and_holds_every_skill():
    dataset = build(settings("dataset", "skills"), "dataset")
    assert set(dataset.mix) == set(SKILLS)
    pool = dataset.load()
    assert len(pool.examples) == dataset.rows
    assert {h["skill"] for h in pool.hidden.values()} == {*SKILLS, "chit_chat"}


def test_the_target_skills_are_a_small_part_of_the_pool():
    target = set(build(settings("benchmark", "skills_target"), "benchmark").skills)
    mix = build(settings("dataset", "skills"), "dataset").mix
    assert len(target) == 3
    assert sum(mix[name] for name in target) < 0.15 * sum(mix.values())


def test_in_domain_covers_every_skill():
    assert set(build(settings("benchmark", "skills_in_domain"), "benchmark").skills) == set(SKILLS)


@pytest.mark.parametrize(("name", "subtasks"), [("mmlu", 57), ("bbh", 27), ("tydiqa", 9), ("gsm8k", 1)])
def test_a_suite_names_as_many_bundled_tasks_as_less_counts(name, subtasks):
    import lm_eval.tasks

    suite = build(settings("benchmark", name), "benchmark")
    folder = Path(lm_eval.tasks.__file__).parent / suite.folder
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    assert set(suite.names) <= set(manager.all_tasks)
    assert len(manager.all_subtasks) == subtasks or name == "gsm8k" and "gsm8k" in manager.all_subtasks
