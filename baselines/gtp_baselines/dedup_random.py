"""Near-duplicate filter, then uniform choice: what de-duplication alone is worth.

Deduplicating Training Data Makes Language Models Better (Lee et al., arXiv 2107.06499) finds near copies by
MinHash over word n-grams; its official code, github.com/google-research/deduplicate-text-datasets, is about
exact substrings. Ours uses datasketch (github.com/ekzhu/datasketch, the installed release) with fewer hash
functions, word n-grams in lower case (of characters, where a script has no blanks between words), and the
estimated Jaccard similarity in place of an edit distance.

Rows come in the order in which `random` draws them at the same seed, and a row is passed over when an earlier
one is a near copy: the two selectors differ by the filter alone. Passed-over rows are only used when nothing
else is left to fill the budget.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from tqdm import tqdm

from gtp_exp.data.near_duplicates import NEAR
from gtp_exp.data.words import comparable, words
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError, check_installed
from gtp_exp.selection.base import Selection, SelectionProblem, Selector, unit_weights

if TYPE_CHECKING:
    from datasketch import MinHash

HASH_SEED = 1  # of MinHash; the choice is random by the problem's seed, the filter is always the same
LSH_WEIGHTS = (0.1, 0.9)  # a false proposal costs a comparison, a missed one a near copy
BATCH = 1024  # texts hashed at a time


@dataclass(frozen=True)
class DedupRandom(Selector):
    """Choose at random among rows that do not nearly repeat one another."""

    version: ClassVar[int] = 4
    threshold: float = NEAR  # Jaccard similarity of word n-grams from which a row is a near copy
    ngram: int = 3
    hashes: int = 128

    def __post_init__(self) -> None:
        check_installed("selector=dedup_random", "datasketch", extra="dedup")
        check_fields(self, "selector")
        if not 0 < self.threshold < 1:
            raise UserError(f"selector.threshold={self.threshold} must lie between 0 and 1, such as {NEAR}")
        if self.ngram < 1 or self.hashes < 2:
            raise UserError(f"selector needs ngram >= 1 and hashes >= 2; got {self.ngram}, {self.hashes}")

    def reads(self) -> dict[str, str]:
        return {"datasketch": importlib.metadata.version("datasketch")}

    def select(self, problem: SelectionProblem) -> Selection:
        n = len(problem.candidates)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(problem.seed))
        copies = self.near_copies([problem.candidates[i].text for i in order.tolist()])
        order = torch.cat([order[~copies], order[copies]])
        chosen = problem.budget.take(order, problem.n_tokens)
        kept = set(order[: n - int(copies.sum())].tolist())
        diagnostics = {
            "near_copies_in_pool": int(copies.sum()),
            "near_copies_chosen": sum(i not in kept for i in chosen.tolist()),
        }
        return Selection(chosen, unit_weights(len(chosen)), torch.zeros(n), diagnostics)

    def near_copies(self, texts: list[str]) -> torch.Tensor:
        """Which texts repeat an earlier one that is not itself a copy: bool [n]."""
        from datasketch import MinHashLSH

        try:
            index = MinHashLSH(threshold=self.threshold, num_perm=self.hashes, weights=LSH_WEIGHTS)
        except ValueError:  # so near to 1 that it would take one band, which it refuses
            index = MinHashLSH(num_perm=self.hashes, params=(2, self.hashes // 2))
        kept: dict[Hashable, MinHash] = {}
        near = torch.zeros(len(texts), dtype=torch.bool)
        hashed = tqdm(self._hashed(texts), total=len(texts), desc="near copies", unit="row", delay=2.0)
        for i, one in enumerate(hashed):
            # The index proposes, the estimate over all hashes decides.
            if any(one.jaccard(kept[j]) >= self.threshold for j in index.query(one)):
                near[i] = True
            else:
                kept[i] = one
                index.insert(i, one)
        return near

    def _hashed(self, texts: list[str]) -> Iterator[MinHash]:
        from datasketch import MinHash

        for start in range(0, len(texts), BATCH):
            sets = [self.shingles(t) for t in texts[start : start + BATCH]]
            yield from MinHash.bulk(sets, num_perm=self.hashes, seed=HASH_SEED)

    def shingles(self, one: str) -> set[bytes]:
        """Word n-grams; a shorter text is one shingle."""
        text_words = words(comparable(one))
        last = max(1, len(text_words) - self.ngram + 1)
        return {" ".join(text_words[i : i + self.ngram]).encode() for i in range(last)}
