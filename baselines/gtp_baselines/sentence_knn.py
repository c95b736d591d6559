"""Nearest neighbours of the target rows among sentence embeddings of an encoder trained for similarity.

Like `embedding_knn` in everything but who embeds: a Sentence-Transformers model (Reimers & Gurevych, arXiv
1908.10084; huggingface/sentence-transformers) reads the row's text, prompt and completion. Texts beyond the
encoder's own maximum length are cut, and counted in the diagnostics. Ours throughout.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F

from gtp_baselines.aggregation import Aggregation
from gtp_baselines.model_passes import check_batch_size
from gtp_baselines.neighbours import choose_nearest
from gtp_baselines.ranking import text
from gtp_exp.data.examples import Example
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError, check_installed, first_line
from gtp_exp.model.identity import weights_fingerprint
from gtp_exp.selection.base import Selection, SelectionProblem, Selector

PACKAGE = "sentence-transformers"


@dataclass(frozen=True)
class SentenceKNN(Selector):
    """Choose the nearest neighbours of the target rows among a sentence encoder's embeddings."""

    encoder: str = (
        "sentence-transformers/all-MiniLM-L6-v2"  # hub id of a Sentence-Transformers model, or a local folder
    )
    revision: Optional[str] = None
    aggregation: Aggregation = Aggregation.ROUND_ROBIN
    batch_size: int = 64  # of the forward pass; no part of the result

    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_installed("selector=sentence_knn", "sentence_transformers", extra="sentence")
        check_fields(self, "selector")
        check_batch_size(self.batch_size)

    def select(self, problem: SelectionProblem) -> Selection:
        encoder = self._load()
        pool, cut = self._embed(problem.candidates, encoder)
        target = pool if problem.target is None else self._embed(problem.target, encoder)[0]
        return choose_nearest(problem, pool, target, self.aggregation, {"encoder": self.encoder, "cut": cut})

    def reads(self) -> dict[str, str]:
        """The encoder's content: a folder can be trained again, and a hub's branch moves on."""
        from transformers import AutoConfig

        with self._loading():
            release = importlib.metadata.version(PACKAGE)
            architecture = AutoConfig.from_pretrained(self._location, revision=self.revision)
        return {"encoder": weights_fingerprint(self._location, architecture, self.revision), PACKAGE: release}

    @property
    def _location(self) -> str:
        return os.path.expanduser(self.encoder)

    def _load(self) -> Any:
        with self._loading():
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(
                self._location,
                revision=self.revision,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise UserError(
                f"selector.encoder={self.encoder} is neither here nor reachable ({first_line(error)}); "
                "give a local folder, or go online without HF_HUB_OFFLINE"
            ) from error

    def _embed(self, examples: Sequence[Example], encoder: Any) -> tuple[torch.Tensor, int]:
        """Unit rows float32 [n, d], and how many texts were cut. Equal texts are embedded once, in an order
        that depends on the texts alone, so the order of the pool cannot change a bit of the result.
        """
        texts = [text(example) for example in examples]
        distinct = sorted(set(texts))
        vectors = encoder.encode(
            distinct, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=True
        )
        position = {one: i for i, one in enumerate(distinct)}
        rows = F.normalize(vectors.float().cpu(), dim=1)[[position[one] for one in texts]]
        if not torch.isfinite(rows).all():
            bad = examples[int((~torch.isfinite(rows).all(1)).nonzero()[0])].id
            raise UserError(f"the encoder's embedding of example '{bad}' is not finite; remove the row")
        lengths = [len(ids) for ids in encoder.tokenizer(texts, truncation=False)["input_ids"]]
        return rows, sum(n > encoder.max_seq_length for n in lengths)
