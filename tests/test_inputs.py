"""The rows of a job as its data set says that they are taken."""

from __future__ import annotations

import json
from types import MappingProxyType, SimpleNamespace

import pytest

from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.data.sources.base import NearCopies
from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.data.tokenization import OverLength, SpecialTokens
from gtp_exp.errors import UserError
from gtp_exp.inputs import load_inputs


@pytest.fixture
def load(tiny, examples, tmp_path):
    """Load one row of these texts and copies of it, and a target whose first row has them, too."""

    def load(prompt: str, completion: str, copies: int = 0, tests=MappingProxyType({}), **rules):
        file = tmp_path / "pool.jsonl"
        row = json.dumps({"prompt": prompt, "completion": completion}) + "\n"
        file.write_text(row * (1 + copies))
        dataset = Jsonl([str(file)], **rules)
        target = (dataset.load().examples[0], *examples[:2])
        own, further = (
            SimpleNamespace(target=lambda: target, tasks=lambda name=name: tests.get(name, ()))
            for name in ("own", "further")
        )
        return load_inputs(dataset, own, tiny, tiny, further={"further": further})

    return load


@pytest.mark.parametrize("policy", list(SpecialTokens))
def test_special_tokens_in_the_text_of_pool_and_target_are_read_as_the_data_set_says(load, tiny, policy):
    name = tiny.tokenizer.eos_token
    inputs = load(f"What does {name} end?", "A text.", special_tokens=policy)
    for rows in (inputs.candidates, inputs.target):
        ends = rows.tokenized[0].input_ids.count(tiny.tokenizer.eos_token_id)
        assert ends == inputs.target.tokenized[1].input_ids.count(tiny.tokenizer.eos_token_id) + (
            policy is SpecialTokens.KEEP
        )


def test_long_rows_of_pool_and_target_are_taken_as_the_data_set_says(load):
    inputs = load("Count.", "1 2 3 " * 99, over_length=OverLength.CUT)
    assert inputs.candidates.cut == inputs.target.cut == 1
    with pytest.raises(UserError, match="the pool has no row .*longer than model.max_length': 1"):
        load("Count.", "1 2 3 " * 99)
    with pytest.raises(UserError, match="dataset.over_length=drop"):
        load("Count.", "1 2 3 " * 99, over_length=OverLength.ERROR)


@pytest.mark.parametrize(
    ("names", "told"),
    [(["target"], "called 'target', .* benchmark.name"), (["sums", "sums"], "two tests are called 'sums'")],
)
@pytest.mark.parametrize("further", [False, True])
def test_a_name_under_which_a_run_records_something_else_is_no_name_of_a_test(
    load, examples, names, told, further
):
    """The counts and the hash of the target's rows were replaced by the test's."""
    tests = tuple(EvalTask(name, HELD_OUT_LOSS, {}, (), held_out=examples[2:4]) for name in names)
    with pytest.raises(UserError, match=told):
        load("Count.", "1 2", tests={"further" if further else "own": tests})


@pytest.mark.parametrize("policy", list(NearCopies))
def test_near_copies_in_the_pool_are_candidates_or_not_as_the_data_set_says(load, policy):
    inputs = load("Count.", "One, two, three.", near_copies=policy, copies=3)
    dropped = policy is NearCopies.DROP
    assert len(inputs.candidates.examples) == (1 if dropped else 4)
    assert inputs.pool_summary().rows == 4
    assert inputs.pool_summary().excluded == ({"near copy of an earlier row": 3} if dropped else {})
