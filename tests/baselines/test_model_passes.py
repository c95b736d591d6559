"""Embeddings and losses of the untuned model, against one row at a time without padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from baseline_problems import problem

from conftest import conversation
from gtp_baselines.aggregation import Aggregation
from gtp_baselines.embedding_knn import EmbeddingKNN
from gtp_baselines.ifd import IFD, answer_header, last_answer, without_prompt
from gtp_baselines.model_passes import Pooling, embed, labelled_loss, tokens_of
from gtp_baselines.perplexity import LossRange, Perplexity
from gtp_baselines.ranking import tie_order
from gtp_baselines.rds_plus import RDSPlus
from gtp_exp.data.examples import IGNORE, Example, Message, TokenizedExample
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError
from gtp_exp.evaluation.held_out import held_out_loss


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.load()


@pytest.fixture(scope="module")
def given(model):
    texts = [(f"Question {i}?" * (1 + i % 3), f"Answer {i * i}." * (1 + i % 5)) for i in range(30)]
    texts[17] = texts[4]  # an exact copy
    return problem(texts=texts, model=model)


@pytest.fixture(scope="module")
def tokens(given, model):
    return tokens_of(given.candidates, model)


def states(model, row):
    """Last hidden states [L, hidden] of a row on its own."""
    with torch.no_grad():
        output = model.model(torch.tensor([row.input_ids]), output_hidden_states=True)
    return output.hidden_states[-1][0].double()


@pytest.mark.parametrize("pooling", Pooling)
def test_embeddings_are_the_pooled_states_of_each_row_alone(pooling, model, tokens):
    found = embed(tokens, model, pooling=pooling, batch_size=7, label="test")
    for row, embedding in zip(tokens, found, strict=True):
        hidden = states(model, row)
        if pooling is Pooling.MEAN:
            expected = hidden.mean(0)
        else:
            expected = sum((i + 1) * h for i, h in enumerate(hidden)) / sum(range(1, len(hidden) + 1))
        assert torch.allclose(embedding.double(), F.normalize(expected, dim=0), atol=1e-5)


@pytest.mark.parametrize("selector", [EmbeddingKNN, IFD, Perplexity, RDSPlus])
def test_a_batch_of_no_row_is_refused(selector):
    with pytest.raises(UserError, match="selector.batch_size=0 must be at least 1"):
        selector(batch_size=0)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_batch_size_changes_nothing(batch_size, model, tokens):
    kwargs = {"label": "test", "batch_size": batch_size}
    alone = embed(tokens, model, pooling=Pooling.POSITION, batch_size=3, label="test")
    assert torch.allclose(embed(tokens, model, pooling=Pooling.POSITION, **kwargs), alone, atol=1e-5)
    losses = labelled_loss(tokens, model, batch_size=3, label="test")
    assert torch.allclose(labelled_loss(tokens, model, **kwargs), losses, atol=1e-5)


def test_the_order_of_the_rows_changes_no_bit_and_copies_are_equal(model, tokens):
    def both(rows):
        return (
            embed(rows, model, pooling=Pooling.MEAN, batch_size=4, label="test"),
            labelled_loss(rows, model, batch_size=4, label="test"),
        )

    forward, backward = both(tokens), both(tokens[::-1])
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one, other.flip(0))
        assert torch.equal(one[4], one[17])


def test_the_loss_is_that_of_the_evaluation(given, model, tokens):
    found = labelled_loss(tokens, model, batch_size=4, label="test")
    for example, nats in list(zip(given.candidates, found.tolist(), strict=True))[:5]:
        (row,) = tokenize([example], model.tokenizer, max_length=model.max_length).examples
        loss = held_out_loss([row], model, batch_size=1, label="test").metrics()
        expected = (loss["nats_per_answer"] + loss["nats_end"]) / row.n_completion_tokens
        assert nats == pytest.approx(expected, abs=1e-5)


def test_tokens_after_the_last_label_need_no_pass_of_their_own(model, tokens):
    passes = []
    kept = replace(model, keep=lambda what, reads, compute: passes.append(reads) or compute())
    cut = [last_answer(row) for row in tokens]
    assert any(row.n_tokens < whole.n_tokens for row, whole in zip(cut, tokens, strict=True))
    one, other = (labelled_loss(rows, kept, batch_size=4, label="test") for rows in (tokens, cut))
    assert torch.equal(one, other) and passes[0] == passes[1]


def test_a_model_that_gives_nan_is_refused_by_the_rows_id(given, model, tokens):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = self
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask):
            hidden = torch.ones(*input_ids.shape, 8)
            wanted = torch.tensor(tokens[3].input_ids)
            for row, ids in enumerate(input_ids):
                if torch.equal(ids[: len(wanted)], wanted):
                    hidden[row] = float("nan")
            return type("Output", (), {"last_hidden_state": hidden, "logits": hidden})

    broken = replace(model, model=Broken())
    with pytest.raises(UserError, match="row-3'"):
        embed(tokens, broken, pooling=Pooling.MEAN, batch_size=4, label="test")


@pytest.mark.parametrize(
    ("selector", "pooling"),
    [
        (RDSPlus(Aggregation.ROUND_ROBIN, 4), Pooling.POSITION),
        (EmbeddingKNN(Aggregation.ROUND_ROBIN, 4), Pooling.MEAN),
    ],
    ids=["rds_plus", "embedding_knn"],
)
def test_target_rows_take_their_nearest_neighbours_in_turn(selector, pooling, given, model):
    pool = embed(tokens_of(given.candidates, model), model, pooling=pooling, batch_size=8, label="test")
    target = embed(tokens_of(given.target, model), model, pooling=pooling, batch_size=8, label="test")
    cosine = (target @ pool.T).tolist()
    turns = tie_order(given.target, given.seed).tolist()
    taken: list[int] = []
    for turn in range(10):
        row = cosine[turns[turn % len(turns)]]
        taken.append(max((i for i in range(30) if i not in taken), key=lambda i: row[i]))
    chosen = selector.select(given).indices.tolist()
    assert [4 if i == 17 else i for i in chosen] == [4 if i == 17 else i for i in taken]


def test_in_domain_the_nearest_to_the_pools_mean_are_chosen(given, model):
    pool = embed(tokens_of(given.candidates, model), model, pooling=Pooling.MEAN, batch_size=8, label="test")
    expected = (pool @ pool.T).mean(0)
    selection = EmbeddingKNN(Aggregation.ROUND_ROBIN, 4).select(replace(given, target=None))
    assert torch.allclose(selection.scores, expected, atol=1e-5)
    assert float(expected[selection.indices].min()) >= float(expected.sort(descending=True).values[9]) - 1e-6


@pytest.mark.parametrize("part", LossRange)
def test_perplexity_takes_its_part_of_the_ranking(part, given, model, tokens):
    nats = labelled_loss(tokens, model, batch_size=8, label="test")
    ascending = nats.sort().values
    expected = {
        LossRange.TOP: ascending[-10:],
        LossRange.MIDDLE: ascending[10:20],
        LossRange.BOTTOM: ascending[:10],
    }[part]
    chosen = Perplexity(part, 4).select(given).indices
    assert torch.allclose(nats[chosen].sort().values, expected, atol=1e-5)


def test_the_middle_of_an_odd_number_of_rows_starts_at_the_median():
    nats = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7], dtype=torch.float64)
    score = Perplexity(LossRange.MIDDLE, 1).score(nats, nats.argsort(descending=True))
    assert nats[score.argsort(descending=True)].tolist() == [0.5, 0.7, 0.3, 0.9, 0.1]


def test_ifd_is_the_ratio_of_the_answers_losses(given, model):
    tokenizer = model.tokenizer
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert answer_header(tokenizer) == header

    def mean_loss(context, answer):
        ids = torch.tensor([[*context, *answer]])
        with torch.no_grad():
            logits = model.model(ids).logits[0, len(context) - 1 : -1].double()
        return float(F.cross_entropy(logits, torch.tensor(answer)))

    ratios = []
    for example in given.candidates:
        prompt = f"<|im_start|>user\n{example.prompt}<|im_end|>\n<|im_start|>assistant\n"
        answer = tokenizer(example.completion + "<|im_end|>", add_special_tokens=False)["input_ids"]
        given_prompt = mean_loss(tokenizer(prompt, add_special_tokens=False)["input_ids"], answer)
        ratios.append(given_prompt / mean_loss(header, answer))
    best_first = sorted(range(30), key=lambda i: (ratios[i] > 1, abs(ratios[i] - 1)))
    selection = IFD(4).select(given)
    assert selection.scores.abs().tolist() == pytest.approx(ratios, abs=1e-5)
    worst_chosen = max(best_first.index(i) for i in selection.indices.tolist())
    assert worst_chosen <= 10  # 9, or 10 where the copy stands in for its original


def test_ifd_uses_rows_above_one_last_and_closest_first(given, model, monkeypatch):
    ratios = torch.linspace(0.8, 1.2, 30, dtype=torch.float64)
    answers = iter([ratios, torch.ones(30, dtype=torch.float64)])
    monkeypatch.setattr("gtp_baselines.ifd.labelled_loss", lambda *_, **__: next(answers))
    chosen = IFD(4).select(replace(given, budget=replace(given.budget, amount=20))).indices
    expected = sorted(range(30), key=lambda i: (float(ratios[i]) > 1, abs(float(ratios[i]) - 1)))
    assert chosen.tolist() == expected[:20]


def test_of_several_turns_the_last_is_the_answer(model):
    turns = ["Hi.", "Hello!", "And now?", "Bye."]
    roles = ["user", "assistant"] * 2
    example = Example("two", tuple(Message(r, t) for r, t in zip(roles, turns, strict=True)))
    (row,) = tokens_of([example], model)
    only = last_answer(row)
    answer = [label for label in only.labels if label != IGNORE]
    assert model.tokenizer.decode(answer) == "Bye.<|im_end|>"
    assert only.input_ids == row.input_ids[: len(only.input_ids)]
    alone = without_prompt(only, answer_header(model.tokenizer), model.tokenizer)
    assert model.tokenizer.decode(list(alone.input_ids)) == "<|im_start|>assistant\nBye.<|im_end|>"
    assert [label for label in alone.labels if label != IGNORE] == answer


def test_an_answer_alone_keeps_bos_and_always_follows_something(model):
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    row = TokenizedExample("r", (bos, 40, 41, 42), (IGNORE, IGNORE, 41, 42))
    assert without_prompt(row, [50], model.tokenizer).input_ids == (bos, 50, 41, 42)
    row = TokenizedExample("r", (39, 40, 41, 42), (IGNORE, IGNORE, 41, 42))
    assert without_prompt(row, [], model.tokenizer).input_ids == (eos, 41, 42)


def test_rows_without_a_completion_are_not_scored(model):
    with pytest.raises(ValueError, match="without a completion"):
        tokens_of([conversation(0, "Say nothing.", "")], model)
