"""Find texts that nearly repeat an earlier one."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from tqdm.auto import tqdm

from gtp_exp.data.examples import Pool
from gtp_exp.data.words import comparable, words

NEAR = 0.7  # Jaccard similarity of 3-grams from which two texts count as near-duplicates
REPEATED = "near copy of an earlier row"  # why a row is left out

log = logging.getLogger(__name__)


def near_duplicates(texts: Sequence[str]) -> list[bool]:
    """Return which texts resemble an earlier one, copies included: the Jaccard similarity of their 3-grams of
    words (of characters, where a script has no blanks between words) is at least NEAR.

    The answer is exact, without a comparison of every pair (prefix filtering; Chaudhuri, Ganti, Kaushik
    2006): two sets this much alike share one of the rarest |x| - ceil(NEAR |x|) + 1 3-grams of each, so texts
    that have only frequent ones in common, a system prompt say, are never compared.
    """
    rows = _rarest_first([_trigrams(ids) for ids in _word_ids(texts)])
    having: dict[int, list[int]] = defaultdict(list)  # 3-gram -> texts with it among their rarest
    near = []
    for i, row in enumerate(tqdm(rows, desc="near-duplicates", unit="row", delay=5, leave=False)):
        rarest = row[: len(row) - math.ceil(NEAR * len(row) - 1e-9) + 1].tolist()
        near.append(any(_jaccard(row, rows[j]) >= NEAR for j in _met(rarest, having)))
        for gram in rarest:
            having[gram].append(i)
    return near


def _met(rarest: Iterable[int], having: Mapping[int, Iterable[int]]) -> Iterator[int]:
    """Yield once each text that has one of these 3-grams among its rarest.

    One by one, as the first that is alike ends the search: of a template's rows or of copies there are as
    many as texts before.
    """
    known: set[int] = set()
    for gram in rarest:
        for j in having.get(gram, ()):
            if j not in known:
                known.add(j)
                yield j


def without_near_duplicates(pool: Pool) -> Pool:
    """Return a pool without rows whose text (question, reasoning and answer together) resembles an earlier
    row's."""
    near = near_duplicates([example.text for example in pool.examples])
    kept = tuple(example for example, again in zip(pool.examples, near, strict=True) if not again)
    if len(kept) == len(pool.examples):
        return pool
    log.info("pool: left out %d of %d rows (%s)", sum(near), len(pool.examples), REPEATED)
    hidden = {example.id: pool.hidden[example.id] for example in kept if example.id in pool.hidden}
    return Pool(kept, hidden, {**pool.skipped, REPEATED: pool.skipped.get(REPEATED, 0) + sum(near)})


def _word_ids(texts: Sequence[str]) -> list[np.ndarray]:
    """Return each text as the numbers of its words, equal for equal words."""
    number: dict[str, int] = defaultdict(lambda: len(number) + 1)
    return [np.array([number[word] for word in words(comparable(text))], np.uint64) for text in texts]


def _trigrams(ids: np.ndarray) -> np.ndarray:
    """Return the distinct 3-grams as 64-bit hashes; a shorter text is one 3-gram with zeros in front."""
    ids = np.concatenate([np.zeros(max(0, 3 - len(ids)), np.uint64), ids])
    a, b = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd; products wrap around
    return np.unique((ids[:-2] * a + ids[1:-1]) * b + ids[2:])


def _rarest_first(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return each row with its 3-grams replaced by their ranks of frequency, rarest first."""
    if not rows:
        return []
    _, place, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
    order = np.empty(len(counts), np.int64)
    order[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return [np.sort(row) for row in np.split(order[place], ends)]


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
