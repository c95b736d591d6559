"""Simple facts about the rows of a subset, with which objectives are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gtp_baselines.bm25 import BM25
from gtp_benchmarks.validity.study import Study, scores
from gtp_benchmarks.validity.subsets import Subset
from gtp_benchmarks.validity.targets import answers_covered, target_like

TARGET_SHARE = "share of target-like rows"


def facts_of(study: Study, subsets: Sequence[Subset]) -> dict[str, list[float]]:
    """Return a number per subset by the fact's name. Larger is taken as better, of lengths by convention."""
    relevance = scores(study, BM25(), None)
    lengths = torch.tensor([float(row.n_completion_tokens) for row in study.inputs.candidates.tokenized])
    like = target_like(study.inputs).float()
    means = {
        "mean bm25": relevance,
        "mean length of answers": lengths,
        TARGET_SHARE: like,
    }
    chosen = [torch.tensor(subset.rows) for subset in subsets]
    facts = {name: [float(values[rows].double().mean()) for rows in chosen] for name, values in means.items()}
    covered = [float(answers_covered(study.inputs, subset.rows)) for subset in subsets]
    return {**facts, "answers of the target covered": covered}
