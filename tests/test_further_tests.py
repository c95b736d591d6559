"""`tests=[...]`: composed like the benchmark, tested like it, and seen by no selector."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_experiment import GROUPS, JOB, ROOT, computed
from toy import TOY

from gtp_exp import experiment
from gtp_exp.api.further_tests import compose_tests
from gtp_exp.data.benchmark import Answers
from gtp_exp.errors import UserError
from gtp_exp.estimate.parts import Parts
from gtp_exp.estimate.walk import plan
from gtp_exp.records.row_results import read_row_results
from gtp_exp.stages.evaluation import EVALUATION, UNTUNED
from gtp_exp.worker import _begin, assemble

SKILLS = "tests=[{skills_target:{test_rows:4,generation_skills:[]}}]"
AIMED = ["benchmark=skills_target", "benchmark.test_rows=4", "benchmark.generation_skills=[]"]


def composed(*overrides, main="toy") -> Any:
    """The configuration of a job with its further tests, as Hydra's side hands it on."""
    search = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [search, *TOY, "budget=10pct", *overrides], return_hydra_config=True)
        sources = config.hydra.runtime.config_sources
        job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        compose_tests(job, main, sources)
        return OmegaConf.to_container(job, resolve=True)


def run(outputs, *overrides, main="toy"):
    config = composed(f"outputs={outputs}", "selector=random", *overrides, main=main)
    record = _begin(config, {**JOB, "names": dict.fromkeys(GROUPS, main)})
    (outputs / "run").mkdir(parents=True, exist_ok=True)
    return experiment.run(assemble(config), record, outputs / "run", JOB)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def first(outputs):
    return run(outputs, SKILLS)


def test_a_further_test_is_reported_under_its_name_tuned_and_untuned(first, outputs):
    assert list(first.metrics) == ["toy_sums"] and first.answers is Answers.TEXT
    assert list(first.tests) == ["skills_target"]
    test = first.tests["skills_target"]
    assert test.answers is Answers.CHOICES
    tasks = ["skills_desk", "skills_shelf", "skills_review"]
    assert list(test.metrics) == list(test.untuned) == list(test.rows) == tasks
    assert all(values["rows_tested"] == 4 for values in test.metrics.values())
    assert "skills_desk" not in first.rows
    rows = read_row_results(outputs / "run")
    assert list(rows["skills_target"]) == sorted(tasks)
    for name, told in (("", first.metrics), ("skills_target", test.metrics)):
        for task, values in told.items():
            for metric in ("acc", "content", "nats_per_answer"):
                assert rows[name][task][metric].mean() == pytest.approx(values[metric])
            own, tokens = rows[name][task]["nats_per_token"], rows[name][task]["answer_tokens"]
            assert (own * tokens).sum() / tokens.sum() == pytest.approx(values["nats_per_token"])
    events = [json.loads(x) for x in (outputs / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "skills_target/skills_desk" in {event.get("task") for event in events}


def test_it_changes_nothing_that_is_chosen_or_trained_and_is_found_in_the_cache_as_the_main_one(
    first, outputs
):
    alone = run(outputs)
    assert computed(alone) == set() and alone.selection == first.selection
    assert alone.metrics == first.metrics and not alone.tests
    # Aimed at, the same test of the untuned model is the same stage.
    aimed = run(outputs, *AIMED, main="skills_target")
    assert aimed.stages[UNTUNED].cached
    assert aimed.untuned == first.tests["skills_target"].untuned
    again = run(outputs, SKILLS)
    assert computed(again) == set() and again.tests == first.tests


def test_the_estimate_counts_it(first, outputs):
    config = composed(f"outputs={outputs}", "selector=random", SKILLS, "seed=7")
    planned = plan([config], Parts())
    tests = planned.of(EVALUATION)
    assert len(tests) == 4 and sum(work.rows or 0 for work in tests) == 8 + 3 * 4
    assert not any(work.cached for work in tests) and all(work.cached for work in planned.of(UNTUNED))


def test_the_leak_check_covers_it(tmp_path):
    asked = {"id": "t", "query": "What is 3 plus 2?", "choices": ["5", "6"], "gold": 0}
    (tmp_path / "t.jsonl").write_text(json.dumps(asked) + "\n")
    test = f"tests=[{{jsonl_choice:{{test:'{tmp_path / 't.jsonl'}'}}}}]"
    found = run(tmp_path / "outputs", test, "until=selection")
    assert found.leakage["pool"]["same_prompt"] > 0 and not found.tests
    targets = {**asked, "query": "What is 202 plus 2?"}
    (tmp_path / "t.jsonl").write_text(json.dumps(targets) + "\n")
    with pytest.raises(UserError, match="1 target rows are test rows"):
        run(tmp_path / "outputs", test)


def test_an_option_occurs_several_times_under_names_of_its_own(tmp_path):
    for name, choices in (("exam", ["7", "8"]), ("quiz", ["yes", "no"])):
        asked = {"id": name, "query": f"Is this the {name}?", "choices": choices, "gold": 0}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(asked) + "\n")
    entries = [f"{{jsonl_choice:{{name:{x},test:'{tmp_path / x}.jsonl'}}}}" for x in ("exam", "quiz")]
    found = run(tmp_path / "outputs", f"tests=[{','.join(entries)}]")
    assert {name: list(test.metrics) for name, test in found.tests.items()} == {
        "exam": ["exam"],
        "quiz": ["quiz"],
    }
    again = compose_tests_again(found.config["tests"])
    assert list(again) == ["exam", "quiz"]  # what resolved.yaml holds keeps its names


def compose_tests_again(tests: Any) -> Any:
    config = OmegaConf.create({"tests": tests})
    compose_tests(config, "toy", [])
    return config.tests


def test_a_test_is_called_by_its_option_where_its_name_is_an_interpolation():
    tests = composed("tests=[{jsonl_choice:{name:'test-${seed}',test:t.jsonl}}]")["tests"]
    assert list(tests) == list(compose_tests_again(tests)) == ["jsonl_choice"]
    assert tests["jsonl_choice"]["name"] == "test-0"


def test_a_job_until_validation_reads_no_further_test(outputs):
    found = run(outputs, "tests=[{jsonl_choice:{test:/nowhere.jsonl}}]", "until=validation")
    assert found.validation is not None and not found.tests


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tests=[gsm8k,gsm8k]", "names gsm8k twice"),
        ("tests=[toy]", "names toy twice, as benchmark=toy does"),
        ("tests=[mmlu,{jsonl_choice:{name:mmlu,test:t.jsonl}}]", "names mmlu twice; .* by a name where"),
        ("tests=[gsm9k]", "no benchmark gsm9k; there are bbh, .*mmlu.*toy"),
        ("tests=gsm8k", r"tests='gsm8k' must be a list of benchmarks"),
        ("tests=[3]", "3 must be the name of a benchmark"),
        ("tests=[{gsm8k:3}]", "must be the name of a benchmark, or a name with values"),
        ("tests=[{gsm8k:{test_row:3}}]", r"tests.gsm8k has no test_row; it has .*test_rows"),
    ],
)
def test_a_wrong_entry_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        composed(override)


def test_a_wrong_value_and_a_benchmark_that_changes_the_pool_are_refused():
    with pytest.raises(UserError, match=r"tests\.skills_target\.test_rows should be int"):
        assemble(composed("tests=[{skills_target:{test_rows:many}}]"))
    with pytest.raises(UserError, match="pool_held_out takes its test rows out of the pool"):
        assemble(composed("tests=[pool_held_out]"))


def test_options_are_composed_with_what_they_inherit_and_the_jobs_own_values():
    found = composed("tests=[mmlu,{gsm8k:{test_rows:9,chat:true}}]", "seed=3")["tests"]
    assert found["mmlu"]["names"] == ["mmlu"] and found["mmlu"]["answers"] == "choices"
    assert found["gsm8k"]["test_rows"] == 9 and found["gsm8k"]["chat"] is True
    assert found["gsm8k"]["folder"] == "gsm8k" and found["gsm8k"]["answers"] == "reasoning"
    # What resolved.yaml holds is composed to itself.
    assert compose_tests_again(found) == found
