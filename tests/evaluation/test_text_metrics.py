"""Written answers held against the right ones: values by hand, other scripts, errors over rows."""

from __future__ import annotations

import json
import math
from statistics import pstdev

import pytest

from gtp_benchmarks.jsonl import Jsonl, TextMetric
from gtp_exp.data.tokenization import tokenize
from gtp_exp.evaluation.tasks import evaluate
from gtp_exp.evaluation.text_metrics import rouge_l, sentence_chrf
from gtp_exp.leaderboard.metrics import metric_named

METRICS = {TextMetric.ROUGE_L: rouge_l, TextMetric.CHRF: sentence_chrf}


@pytest.mark.parametrize(
    ("right", "written", "value"),
    [
        ("The cat sat on the mat.", "the cat sat on the mat", 1.0),
        ("the cat sat", "the dog sat", 2 / 3),  # two words of three in common, in order
        ("the cat sat on it", "it sat", 2 / 7),  # one word in order: precision 1/2, recall 1/5
        ("a b c d", "d c b a", 1 / 4),
        ("北京欢迎你", "北京", 4 / 7),  # precision 1, recall 2/5
        ("Привет, мир!", "привет мир", 1.0),
        ("yes", "", 0.0),
        ("...", " ... ", 1.0),  # without words it is the same text or another
        ("+", "-", 0.0),
        ("😀", "😀 yes", 0.0),
    ],
)
def test_rouge_l_by_hand(right, written, value):
    assert rouge_l([right], [written]) == pytest.approx(value)


def test_on_english_texts_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    right, written = "Don't panic: it's 3.5 km, I'd say.", "It is 3.5 km (I'd say); don't panic!"
    expected = RougeScorer(["rougeL"]).score(right, written)["rougeL"].fmeasure
    assert rouge_l([right], [written]) == pytest.approx(expected) and 0 < expected < 1


def test_chrf_is_sacrebleus_as_a_share():
    from sacrebleu.metrics.chrf import CHRF

    right, written = "It is a pear.", "It is a bear."
    assert sentence_chrf([right], [written]) == pytest.approx(
        CHRF().sentence_score(written, [right]).score / 100
    )
    assert sentence_chrf([right], [right]) == 1 and sentence_chrf([right], ["xyz"]) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_task_reports_the_mean_its_error_and_every_row_beside_the_loss(metric, tiny, tmp_path):
    rows = [{"prompt": f"Name {i}.", "completion": f"Fruit {i} is a pear."} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    option = Jsonl(test=str(tmp_path / "t.jsonl"), metric=metric, max_new_tokens=12)
    (task,) = option.benchmark().tasks()
    held_out = tokenize(task.held_out, tiny.tokenizer, max_length=tiny.config.max_length).examples
    found = evaluate(task, tiny.load(), held_out=held_out, batch_size=4, directory=tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    values = [METRICS[metric]([s["target"]], [s["filtered_resps"][0]]) for s in samples]
    name = metric.value
    assert found["headline"] == name and found["nats_per_token"] > 0
    assert found[name] == pytest.approx(sum(values) / 4)
    assert found[f"{name}_stderr"] == pytest.approx(pstdev(values) / math.sqrt(4), abs=1e-12)
    assert metric_named(name).higher_is_better and metric_named(name).percent
