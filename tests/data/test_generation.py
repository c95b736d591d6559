"""A task whose answers cannot fit the model is refused before any work; lm-eval would end on it after it."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import pytest

from gtp_benchmarks.written_task import written_task
from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.generation import check_room_to_generate, max_generated_tokens
from gtp_exp.data.sources.base import DataSource, NearCopies
from gtp_exp.data.tokenization import RowRules
from gtp_exp.errors import UserError
from gtp_exp.inputs import load_inputs

BBH = {"include": "lm_eval/tasks/bbh/cot_fewshot/boolean_expressions.yaml"}


def task(config, metric="exact_match,none", docs=({"input": "x"},)):
    return EvalTask("asked", metric, config, docs)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"output_type": "multiple_choice"}, None),
        ({"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 25}}, 25),
        ({"generation_kwargs": {"until": ["\n"], "max_new_tokens": 30}}, 30),
        ({"generation_kwargs": {"max_tokens": 40, "max_gen_toks": 20}}, 20),
        ({}, 256),  # lm-eval's default for a task that generates, which is its default kind
        (BBH, 1024),
        ({**BBH, "generation_kwargs": {"max_gen_toks": 99}}, 99),
        ({"include": "lm_eval/tasks/mmlu/default/mmlu_anatomy.yaml"}, None),
        ({"include": [BBH["include"]]}, 1024),
    ],
)
def test_the_length_of_answers_is_read_where_lm_eval_reads_it(config, expected):
    assert max_generated_tokens(task(config)) == expected


def test_the_default_and_the_order_of_names_are_those_of_lm_eval():
    from lm_eval.models.utils import normalize_gen_kwargs

    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    for settings in ({}, *({one: 3, other: 2} for one, other in permutations(names, 2))):
        ours = max_generated_tokens(task({"generation_kwargs": settings}))
        assert ours == normalize_gen_kwargs(settings)["max_gen_toks"]


def test_a_task_of_the_held_out_loss_writes_nothing():
    assert max_generated_tokens(task({}, metric=HELD_OUT_LOSS)) is None


@pytest.mark.parametrize("most", [8, 9])
def test_right_answers_that_the_model_may_not_write_in_full_are_told(tiny, caplog, most):
    """No written answer could be the right one, and an accuracy of 0 would say nothing of the model."""
    rows = tuple(
        Example(f"{i}", (Message("user", "Count."), Message("assistant", text)))
        for i, text in enumerate(("1", "1 2 3 4 5"))  # of one and nine tokens: the tokenizer takes bytes
    )
    docs = [{"id": row.id, "query": row.prompt, "answer": row.completion} for row in rows]
    test = written_task("counting", docs, pattern="(.*)", until=[], max_tokens=most, held_out=rows)
    dataset = SimpleNamespace(
        load=lambda: Pool(rows), scores=[], near_copies=NearCopies.KEEP, rules=RowRules()
    )
    load_inputs(dataset, SimpleNamespace(target=lambda: None, tasks=lambda: (test,)), tiny, tiny)
    told = "counting: 1 of 2 right answers are longer than the 8 tokens that the model may write"
    assert (told in caplog.text) is (most == 8)


def test_a_bundled_task_is_found_by_its_name():
    bundled = EvalTask("bbh_cot_fewshot_boolean_expressions", "exact_match,get-answer", {}, None)
    assert max_generated_tokens(bundled) == 1024
    group = EvalTask("mmlu", "acc,none", {}, None)  # of tasks that write nothing
    assert max_generated_tokens(group) is None


@pytest.mark.parametrize("max_length", [512, 1023, 1024])
def test_a_model_without_room_is_refused_with_the_remedy(max_length):
    with pytest.raises(UserError, match="'asked'.* 1024 tokens.*raise model.max_length above 1024"):
        check_room_to_generate(task(BBH), max_length)
    check_room_to_generate(task(BBH), 1025)


def test_it_is_refused_when_inputs_are_loaded(tiny, examples):
    class Rows(DataSource):
        def load(self):
            return Pool(tuple(examples))

    benchmark = SimpleNamespace(target=lambda: examples[:2], tasks=lambda: (task(BBH),))
    with pytest.raises(UserError, match="model.max_length=256"):
        load_inputs(Rows(), benchmark, tiny, tiny)
