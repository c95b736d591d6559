"""Candidates whose embeddings are closest to the target's: what RDS+ and nearest neighbours share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtp_baselines.aggregation import Aggregation, choose_by_similarity, group_target
from gtp_baselines.model_passes import Pooling, embed, tokens_of
from gtp_exp.selection.base import Selection, SelectionProblem, unit_weights


def nearest(
    problem: SelectionProblem, pooling: Pooling, aggregation: Aggregation, batch_size: int
) -> Selection:
    """Embedded by the model that is to be tuned."""
    assert problem.model is not None
    tokens = tokens_of(problem.candidates, problem.model, problem.candidate_tokens)
    pool = embed(tokens, problem.model, pooling=pooling, batch_size=batch_size, label="embed the pool")
    target = pool
    if problem.target is not None:
        tokens = tokens_of(problem.target, problem.model, problem.target_tokens)
        target = embed(
            tokens, problem.model, pooling=pooling, batch_size=batch_size, label="embed the target"
        )
    return choose_nearest(problem, pool, target, aggregation, {})


def choose_nearest(
    problem: SelectionProblem,
    pool: torch.Tensor,
    target: torch.Tensor,
    aggregation: Aggregation,
    diagnostics: Mapping[str, Any],
) -> Selection:
    """By cosine, aggregated over the target rows. pool [N, d], target [n, d]: float32 unit rows."""
    groups = group_target(problem, aggregation)
    sums = torch.zeros(len(groups.names), pool.shape[1], dtype=torch.float64)
    groups.sums(target, 0, sums)
    # The mean of the cosines to a group's rows is the product with the mean of their unit vectors.
    chosen, scores = choose_by_similarity(groups.means(sums).float() @ pool.T, problem, aggregation)
    return Selection(chosen, unit_weights(len(chosen)), scores, {"groups": len(groups.names), **diagnostics})
