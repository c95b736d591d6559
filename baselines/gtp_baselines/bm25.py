"""BM25, lexical retrieval with the target rows as queries (Robertson and Zaragoza, The Probabilistic
Relevance Framework: BM25 and Beyond, 2009), a common baseline of data selection (LESS, arXiv 2402.04333,
among others).

Scores are those of bm25s (Lu, arXiv 2407.03618; github.com/xhluca/bm25s, the installed release), Lucene's
variant. A score is linear in the query's word counts, so a group of target rows is one query of mean
counts. Document and query are whole conversations, prompts and answers. Words are runs of two or more word
characters, in lower case, without English stop words, unstemmed; where a script has no blanks between words
(Chinese, Japanese, Thai, ...), pairs of neighbouring characters, as Lucene's analyser for such text takes.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Optional

import numpy as np
import scipy.sparse
import torch

from gtp_baselines.aggregation import Aggregation, Groups, choose_by_similarity, group_target
from gtp_baselines.ranking import text
from gtp_exp.data.words import comparable, terms
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError, check_installed, first_line
from gtp_exp.selection.base import Selection, SelectionProblem, Selector, unit_weights

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenized

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BM25(Selector):
    """Choose the rows that share the target's words, rare words first."""

    version: ClassVar[int] = 4
    k1: float = 1.5  # saturation of repeated words
    b: float = 0.75  # how much long documents are held back
    stopwords: Optional[str] = "en"  # a language that bm25s knows, such as en; null keeps all words
    aggregation: Aggregation = Aggregation.MAX_SUBTASK

    def __post_init__(self) -> None:
        check_installed("selector=bm25", "bm25s", extra="bm25")
        check_fields(self, "selector")
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise UserError(f"BM25 needs selector.k1 >= 0 and 0 <= selector.b <= 1; got {self.k1}, {self.b}")
        if self.stopwords and self.stopwords != "en":  # bm25s is imported to be asked
            _check_language(self.stopwords)

    def reads(self) -> dict[str, str]:
        return {"bm25s": importlib.metadata.version("bm25s")}

    def select(self, problem: SelectionProblem) -> Selection:
        groups = group_target(problem, self.aggregation)
        documents = [text(e) for e in problem.candidates]
        queries = None if problem.target is None else [text(e) for e in problem.target]
        relevance = torch.from_numpy(self.relevance(documents, queries, groups))
        sharing = int((relevance > 0).any(0).sum())
        if not sharing:
            log.warning(
                "bm25: none of the %d candidates shares a word with the target, so they are chosen at "
                "random; check that both are in one language, or take a selector that reads no words",
                len(documents),
            )
        silent = int((relevance.amax(1) == 0).sum())
        if 0 < silent < len(groups.names):
            log.warning(
                "bm25: %d of %d target groups share no word with any candidate and have no say",
                silent,
                len(groups.names),
            )
        chosen, scores = choose_by_similarity(relevance, problem, self.aggregation)
        diagnostics = {
            "groups": len(groups.names),
            "groups_without_shared_word": silent,
            "candidates_with_shared_word": sharing,
            "chosen_without_shared_word": int((scores[chosen] == 0).sum()),
        }
        return Selection(chosen, unit_weights(len(chosen)), scores, diagnostics)

    def relevance(
        self, documents: Sequence[str], queries: Sequence[str] | None, groups: Groups
    ) -> np.ndarray:
        """Mean score over each group's queries, float32 [G, N]; without queries the documents are theirs."""
        import bm25s

        corpus = self._words(documents)
        if not corpus.vocab:
            return np.zeros((len(groups.names), len(documents)), dtype=np.float32)
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", backend="numpy")
        index.index(corpus, show_progress=True)
        columns: Any = index.scores  # by word, the documents that hold it and what it scores in them
        assert columns is not None
        n_words = len(columns["indptr"]) - 1
        table = scipy.sparse.csc_matrix(
            (columns["data"], columns["indices"], columns["indptr"]), shape=(len(documents), n_words)
        )
        # bm25s adds an empty word to the vocabulary for queries without words; it has no column.
        number = {word: i for word, i in corpus.vocab.items() if word}
        query_words = corpus if queries is None else self._words(queries)
        of_query = {i: number[word] for word, i in query_words.vocab.items() if word in number}
        asked = [[of_query[i] for i in ids if i in of_query] for ids in query_words.ids]

        member = groups.member.numpy()
        group = np.repeat(member, [len(ids) for ids in asked])
        words = np.fromiter((w for ids in asked for w in ids), dtype=np.int64, count=len(group))
        share = 1 / np.bincount(member, minlength=len(groups.names))
        counts = scipy.sparse.csr_matrix((share[group], (group, words)), shape=(len(groups.names), n_words))
        return (counts @ table.T).toarray().astype(np.float32)

    def _words(self, texts: Sequence[str]) -> Tokenized:
        import bm25s
        from bm25s.tokenization import Tokenized

        separated = [" ".join(terms(comparable(one))) for one in texts]
        tokenized = bm25s.tokenize(
            separated, token_pattern=r"\S+", stopwords=self.stopwords or [], show_progress=True
        )
        assert isinstance(tokenized, Tokenized)  # and not lists of words, which it gives on request
        return tokenized


def _check_language(stopwords: str) -> None:
    """Raise UserError for a language whose stop words bm25s does not know."""
    import bm25s

    try:
        bm25s.tokenize(["word"], stopwords=stopwords, show_progress=False)
    except ValueError as error:
        raise UserError(
            f"selector.stopwords={stopwords} is no language of bm25s ({first_line(error)}); set "
            "selector.stopwords=null to keep all words"
        ) from error
