"""Evaluation: lm-eval's numbers on a self-contained task, and the held-out loss by a plain loop."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from statistics import fmean, stdev

import datasets
import few_documents
import forked
import pytest
import torch
from toy import CHOICE

from conftest import conversation
from gtp_baselines.model_passes import Pooling, embed, labelled_loss
from gtp_exp.data import tokenization
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import IGNORE
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError
from gtp_exp.evaluation.held_out import held_out_loss, token_loss
from gtp_exp.evaluation.tasks import _headline, evaluate
from gtp_exp.model.loading import ModelSource, prepare
from gtp_exp.model.lora import base_model

DOCS = tuple({"question": f"Is {i} even?", "choices": ["yes", "no"], "gold": i % 2} for i in range(10))
HELD_OUT = tuple(conversation(i, f"Is {i} even?", ["yes", "no"][i % 2]) for i in range(10))


def task(**change):
    values = {
        "name": "even",
        "metric": "acc,none",
        "config": CHOICE,
        "docs": DOCS,
        "held_out": HELD_OUT,
        **change,
    }
    return EvalTask(**values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "none at all"])
def test_a_headline_metric_that_is_no_number_is_told(value):
    output = {"results": {"even": {"acc,none": value, "f1,none": 0.5}}, "samples": {}}
    with pytest.raises(UserError, match=f"task 'even' gives acc,none = {value}, which is no number"):
        _headline(task(), output)


def test_a_task_gives_its_headline_metric_and_the_loss_beside_it(tiny, tmp_path):
    held_out = tokenize(HELD_OUT, tiny.tokenizer, max_length=256).examples
    metrics = evaluate(task(), tiny.load(), held_out=held_out, batch_size=4, directory=tmp_path)
    assert metrics["headline"] == "acc" and 0 <= metrics["acc"] <= 1
    assert metrics["nats_per_token"] > 0 and metrics["acc_stderr"] >= 0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["doc_id"] for s in samples] == list(range(10))
    assert sum(s["acc"] for s in samples) / 10 == pytest.approx(metrics["acc"])
    right = [float(s["filtered_resps"][s["target"]][0]) for s in samples]
    assert metrics["content"] + metrics["form"] == pytest.approx(-sum(right) / 10)


def test_it_starts_no_program(tiny, tmp_path, monkeypatch):
    """lm-eval would ask git, pip and others about this machine."""

    started = []

    def refuse(*arguments, **options):
        started.append(arguments)
        raise OSError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    evaluate(task(held_out=()), tiny.load(), held_out=(), batch_size=4, directory=tmp_path)
    assert started == []


def test_the_rows_stay_out_of_the_users_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "theirs")
    evaluate(task(held_out=()), tiny.load(), held_out=(), batch_size=4, directory=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["row_results.safetensors", "samples.jsonl"]


def test_accuracy_is_whether_the_gold_choice_is_likelier(tiny, tmp_path):
    """lm-eval's answer for each document equals ours from the model's own log-probabilities."""
    loaded = tiny.load()
    evaluate(task(held_out=()), loaded, held_out=(), batch_size=4, directory=tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for doc, sample in zip(DOCS, samples, strict=True):
        scores = []
        for choice in doc["choices"]:
            row = tokenize(
                [conversation(0, doc["question"], choice)], tiny.tokenizer, max_length=256
            ).examples[0]
            with torch.no_grad():
                log_p = loaded.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
            answer = [t for t, label in enumerate(row.labels) if label != IGNORE][
                : len(choice)
            ]  # one byte a token
            scores.append(sum(float(log_p[t - 1, row.labels[t]]) for t in answer))
        assert sample["acc"] == float(scores.index(max(scores)) == doc["gold"])


@pytest.mark.parametrize("adapted", ["lm_head", "embed_tokens"])
def test_a_model_with_an_adapter_at_a_weight_that_is_shared_is_tested_as_it_is(adapted, tiny, tmp_path):
    """The tiny model's head and embeddings share theirs, which lm-eval would tie once more."""
    lora = replace(tiny.config.lora, target_modules=["q_proj", adapted])
    loaded = replace(tiny, config=replace(tiny.config, lora=lora)).load_trainable(0)
    inputs, inner = torch.tensor([[5, 6, 7]]), base_model(loaded.model)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        before = loaded.model(inputs).logits
        evaluate(task(held_out=()), loaded, held_out=(), batch_size=4, directory=tmp_path)
        assert torch.equal(loaded.model(inputs).logits, before)
    assert "tie_weights" not in vars(inner)


def answer_nats(loaded, question, answer, n):
    """The negative log-likelihood of the last n characters of an answer, each of which is a token."""
    row = tokenize([conversation(0, question, answer)], loaded.tokenizer, max_length=256).examples[0]
    with torch.no_grad():
        log_p = loaded.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    stop = row.answers[-1][1]
    return -sum(float(log_p[t - 1, row.input_ids[t]]) for t in range(stop - n, stop))


@pytest.mark.parametrize(
    ("change", "before", "begun"),
    [({"description": "Be exact.\n"}, "Be exact.\n", ""), ({"gen_prefix": "It is: "}, "", "It is: ")],
)
def test_a_description_opens_the_question_and_a_prefix_the_answer(tiny, tmp_path, change, before, begun):
    loaded, asked = tiny.load(), task(config={**CHOICE, **change}, held_out=())
    evaluate(asked, loaded, held_out=(), batch_size=4, directory=tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for doc, sample in zip(DOCS, samples, strict=True):
        for choice, found in zip(doc["choices"], sample["filtered_resps"], strict=True):
            expected = answer_nats(loaded, before + doc["question"], begun + choice, len(choice))
            assert -float(found[0]) == pytest.approx(expected, rel=1e-4)


def test_held_out_loss_equals_a_plain_loop_for_any_batch_size(tiny, examples):
    loaded, answers, count, end = tiny.load(), [], 0, 0.0
    tokens = tokenize(examples, tiny.tokenizer, max_length=256).examples
    for row in tokens:
        with torch.no_grad():
            log_p = loaded.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        answers.append(0.0)
        for t in range(1, len(row.input_ids)):
            if row.labels[t] == tiny.tokenizer.eos_token_id:
                end -= float(log_p[t - 1, row.labels[t]])
            elif row.labels[t] != IGNORE:
                answers[-1] -= float(log_p[t - 1, row.labels[t]])
                count += 1
    for batch_size in (1, 5, 64):
        found = held_out_loss(tokens, loaded, batch_size=batch_size, label="x").metrics()
        assert found["nats_per_token"] == pytest.approx(sum(answers) / count, rel=1e-5)
        assert found["nats_per_answer"] == pytest.approx(fmean(answers), rel=1e-5)
        error = stdev(answers) / len(answers) ** 0.5
        assert found["nats_per_answer_stderr"] == pytest.approx(error, rel=1e-4)
        once = token_loss(tokens, loaded, batch_size=batch_size, label="x")
        assert found["nats_per_token_stderr"] == pytest.approx(once["nats_per_token_stderr"])
        assert found["nats_end"] == pytest.approx(end / len(examples), rel=1e-5)


def test_passes_over_whole_rows_keep_no_keys_and_values(tiny, examples):
    """They would take more memory than all else of long rows."""
    loaded, kept = tiny.load(), []
    loaded.model.base_model.register_forward_hook(lambda _, args, output: kept.append(output.past_key_values))
    rows = tokenize(examples, tiny.tokenizer, max_length=256).examples
    held_out_loss(rows, loaded, batch_size=64, label="x")
    labelled_loss(rows, loaded, batch_size=64, label="x")
    embed(rows, loaded, pooling=Pooling.POSITION, batch_size=64, label="x")
    assert len(kept) >= 3 and not any(kept)


@pytest.fixture
def scaled_by_length(tiny, tiny_config, tmp_path):
    """A model whose positions are scaled where a batch has a row of more than 100 tokens (longrope)."""
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    settings = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 100}
    settings["rope_parameters"] = {**rope, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
    (folder / "config.json").write_text(json.dumps(settings))
    config = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder))
    return prepare(config, tmp_path, torch.device("cpu"))


def test_a_long_row_changes_the_positions_of_no_other(scaled_by_length, tmp_path):
    """In the held-out loss, among the choices of a task, and in a selector's passes over the pool."""
    docs = [{**doc, "question": "So, " * (3 * i) + doc["question"]} for i, doc in enumerate(DOCS)]
    held_out = [conversation(i, doc["question"], doc["choices"][doc["gold"]]) for i, doc in enumerate(docs)]
    rows = tokenize(held_out, scaled_by_length.tokenizer, max_length=256).examples
    assert min(row.n_tokens for row in rows) < 80 and max(row.n_tokens for row in rows) > 120
    loaded, found = scaled_by_length.load(), []
    for batch_size in (1, 64):
        asked = task(docs=tuple(docs), chat=True, held_out=tuple(held_out))
        evaluate(asked, loaded, held_out=rows, batch_size=batch_size, directory=tmp_path)
        samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        found.append(
            [
                torch.tensor([[float(nats) for nats, _ in row["filtered_resps"]] for row in samples]),
                held_out_loss(rows, loaded, batch_size=batch_size, label="x").nats,
                labelled_loss(rows, loaded, batch_size=batch_size, label="x"),
                embed(rows, loaded, pooling=Pooling.POSITION, batch_size=batch_size, label="x"),
            ]
        )
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_where_long_rows_share_no_batch_with_shorter_ones_is_in_the_key_of_their_model(
    scaled_by_length, tiny, tmp_path
):
    """Results that were made otherwise are passed over; of models without such rows all are found again."""
    assert scaled_by_length.identity["rows apart beyond"] == 100
    assert "rows apart beyond" not in tiny.identity
    short = replace(scaled_by_length.config, max_length=100)
    assert "rows apart beyond" not in prepare(short, tmp_path, torch.device("cpu")).identity


def test_one_row_whose_loss_is_not_finite_is_enough_to_say_so(tiny, examples):
    loaded = tiny.load()
    rows = tokenize([*examples[:3], conversation(99, "Say Z.", "Z")], tiny.tokenizer, max_length=256).examples
    (number,) = tiny.tokenizer("Z", add_special_tokens=False).input_ids
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[number] = float("inf")
    with pytest.raises(UserError, match="task 'x': the held-out loss is not finite"):
        held_out_loss(rows, loaded, batch_size=1, label="x")


def test_a_row_that_does_not_fit_is_left_out_of_every_metric(tiny, tmp_path):
    """Alone or with examples before the question, by its question or by its right answer in full."""
    long = "Is it even? " * 18  # fits alone, not with an example before it
    questions = [long * 3, *(doc["question"] for doc in DOCS[1:9]), long]
    answers = ["yes, of course it is" * 15 if i == 4 else ["yes", "no"][i % 2] for i in range(10)]
    docs = tuple({**DOCS[i], "question": question} for i, question in enumerate(questions))
    rows = tuple(conversation(i, q, a) for i, (q, a) in enumerate(zip(questions, answers, strict=True)))
    shots = ({"question": "Is 12 even?", "choices": ["yes", "no"], "gold": 0},)
    config = {**CHOICE, "num_fewshot": 1, "fewshot_config": {"sampler": "first_n"}}
    tested = task(docs=docs, held_out=rows, config=config, fewshot=shots)
    held_out = tokenize(
        rows, tiny.tokenizer, max_length=256, rules=tokenization.RowRules(tokenization.OverLength.DROP)
    ).examples
    assert len(held_out) == 8
    metrics = evaluate(tested, tiny.load(), held_out=held_out, batch_size=4, directory=tmp_path)
    assert (metrics["rows_tested"], metrics["rows_left_out"]) == (7, 3)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["doc_id"] for s in samples] == [1, 2, 3, 5, 6, 7, 8]
    assert metrics["acc"] == pytest.approx(sum(s["acc"] for s in samples) / 7)
    alone = held_out_loss(held_out[:7], tiny.load(), batch_size=4, label="x").metrics()
    assert metrics["nats_per_token"] == pytest.approx(alone["nats_per_token"])


def test_a_question_is_asked_where_what_may_be_written_fits_behind_it(tiny, tmp_path):
    config = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "yes",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 7},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    docs = ({**DOCS[0], "question": "Is 1000 even?"}, *DOCS)
    asked = task(config=config, metric="exact_match,none", docs=docs, held_out=())
    rows = tokenize([conversation(0, docs[0]["question"], "yes")], tiny.tokenizer, max_length=256).examples
    n = rows[0].answers[-1][0] + 7
    for max_length, left_out in ((n, 0), (n - 1, 1)):
        loaded = replace(tiny.load(), max_length=max_length)
        metrics = evaluate(asked, loaded, held_out=(), batch_size=4, directory=tmp_path)
        assert metrics["rows_left_out"] == left_out


def test_a_question_that_just_fits_is_asked(tiny, tmp_path):
    docs = ({**DOCS[0], "question": "Is 1000 even?"}, *DOCS)
    rows = tokenize([conversation(0, docs[0]["question"], "yes")], tiny.tokenizer, max_length=256).examples
    n = rows[0].answers[-1][1]  # the tokens of the longest question with its longest choice
    for max_length, left_out in ((n, 0), (n - 1, 1)):
        loaded = replace(tiny.load(), max_length=max_length)
        metrics = evaluate(
            task(docs=docs, held_out=()), loaded, held_out=(), batch_size=4, directory=tmp_path
        )
        assert metrics["rows_left_out"] == left_out


def test_every_row_of_a_group_of_tasks_is_counted_tested_or_left_out(tiny, tmp_path):
    """The rows of such a task are lm-eval's, read from where its settings say."""
    rows = [{"question": "Is it even? " * n, "choices": ["yes", "no"], "gold": 0} for n in (1, 2, 99)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
    }
    config = {
        "group": "both",
        "task": [{"task": name, **CHOICE, **data} for name in ("first", "second")],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    both = EvalTask("both", "acc,none", config, None)
    metrics = evaluate(both, tiny.load(), held_out=(), batch_size=4, directory=tmp_path)
    assert (metrics["rows_tested"], metrics["rows_left_out"]) == (4, 2)


def test_two_processes_test_a_single_document_both(tiny_config, tmp_path):
    """Given as such, or left by others that are too long."""
    loaded, left_out = prepare(tiny_config, tmp_path, torch.device("cpu")).load(), {"left": 2}
    expected = {
        name: evaluate(few, loaded, held_out=(), batch_size=4, directory=tmp_path)
        for name, few in few_documents.tasks().items()
    }
    forked.connected(2, few_documents.main, tiny_config, tmp_path)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [expected] * 2
    for name, metrics in expected.items():
        assert (metrics["rows_tested"], metrics["rows_left_out"]) == (1, left_out.get(name, 0))


WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[gold]}}",
    "num_fewshot": 0,
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


def test_generation_tasks_are_scored_by_exact_match(tiny, tmp_path):
    metrics = evaluate(
        task(config=WRITTEN, metric="exact_match,none", held_out=()),
        tiny.load(),
        held_out=(),
        batch_size=4,
        directory=tmp_path,
    )
    assert metrics["headline"] == "exact_match" and metrics["exact_match"] == 0.0  # a random model


def test_a_tokenizer_that_names_no_end_of_text_takes_the_end_of_turn(tiny, tiny_config, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("eos_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    own = prepare(
        replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder)), tmp_path, torch.device("cpu")
    )
    found, expected = [], []
    for model, metrics in ((own, found), (tiny, expected)):
        held_out = tokenize(HELD_OUT, model.tokenizer, max_length=256).examples
        for asked in (task(), task(config=WRITTEN, metric="exact_match,none", chat=True)):
            metrics.append(evaluate(asked, model.load(), held_out=held_out, batch_size=4, directory=tmp_path))
    assert found == expected


def test_evaluation_leaves_the_random_state_and_no_machine_path(tiny, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    evaluate(task(held_out=()), tiny.load(), held_out=(), batch_size=4, directory=tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        str(tmp_path) not in p.read_text() and "/tmp" not in p.read_text() for p in tmp_path.glob("*.json*")
    )


def test_a_missing_metric_names_the_ones_there_are(tiny, tmp_path):
    with pytest.raises(UserError, match=r"f1,none.*acc,none"):
        evaluate(
            task(metric="f1,none", held_out=()), tiny.load(), held_out=(), batch_size=4, directory=tmp_path
        )


def test_a_bundled_task_offline_says_how_to_get_its_data(tiny, tmp_path):
    bundled = task(name="arc_easy", metric="acc,none", config={}, docs=None, held_out=())
    with pytest.raises(UserError, match=r"arc_easy.*dataset_path"):
        evaluate(bundled, tiny.load(), held_out=(), batch_size=4, directory=tmp_path)


def test_a_group_of_ones_own_may_be_made_of_bundled_tasks(tiny, tmp_path):
    """Which lm-eval has found if it looks for the data of one of them."""
    config = {"group": "mine", "task": ["arc_easy"], "metadata": {"version": 1.0}}
    mine = EvalTask("mine", "acc,none", config, None)
    with pytest.raises(UserError, match=r"mine.*dataset_path"):
        evaluate(mine, tiny.load(), held_out=(), batch_size=4, directory=tmp_path)


def test_a_task_whose_answers_do_not_fit_the_model_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="'even': no test answer fits model.max_length=256"):
        evaluate(task(metric="nats_per_token"), tiny.load(), held_out=(), batch_size=4, directory=tmp_path)
