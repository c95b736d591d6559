"""Sentence embeddings: the encoder's own numbers, whatever the order and the copies; clear refusals."""

from __future__ import annotations

import importlib.metadata
import shutil

import pytest
import torch
from baseline_problems import problem

from gtp_baselines.aggregation import Aggregation
from gtp_baselines.ranking import text
from gtp_baselines.sentence_knn import SentenceKNN
from gtp_exp.errors import UserError


def knn(encoder, aggregation=Aggregation.MEAN):
    return SentenceKNN(encoder=encoder, revision=None, aggregation=aggregation, batch_size=7)


def test_the_scores_are_mean_cosines_of_the_encoders_embeddings(tiny):
    from sentence_transformers import SentenceTransformer

    given = problem(n=30, rows=5, dim=8)
    chosen = knn(tiny.location).select(given)
    encoder = SentenceTransformer(tiny.location)
    pool = encoder.encode([text(e) for e in given.candidates], normalize_embeddings=True)
    target = encoder.encode([text(e) for e in given.target], normalize_embeddings=True)
    expected = torch.from_numpy((pool @ target.T).mean(1))
    torch.testing.assert_close(chosen.scores, expected, atol=1e-4, rtol=1e-4)
    assert chosen.indices.tolist() == chosen.scores.argsort(descending=True, stable=True)[:5].tolist()
    assert chosen.diagnostics["cut"] == 0


def test_a_missing_encoder_says_what_to_do(tiny, tmp_path):
    with pytest.raises(UserError, match="give a local folder"):
        knn(str(tmp_path / "nothing")).select(problem(n=10, rows=2, dim=8))


def test_an_encoder_that_was_trained_again_is_another_one(tiny, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny.location, folder)
    (folder / "2_Dense").mkdir()
    seen = [knn(str(folder)).reads()]
    for file in ("model.safetensors", "2_Dense/model.safetensors"):
        with (folder / file).open("ab") as weights:
            weights.write(b"more")
        seen.append(knn(str(folder)).reads())
    assert len({one["encoder"] for one in seen}) == 3
    assert seen[0]["sentence-transformers"] == importlib.metadata.version("sentence-transformers")
