"""Collect the per-example gradients of a model that the caller has loaded."""

from __future__ import annotations

import atexit
import copy
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

from gtp_exp.data.examples import Example, TokenizedExample
from gtp_exp.data.forms import ReadAs, detect_layout
from gtp_exp.data.rows import read_pool
from gtp_exp.data.tokenization import check_vocabulary, ensure_chat_template, tokenize
from gtp_exp.data.values import Place
from gtp_exp.errors import UserError
from gtp_exp.gradients.checkpoints import MOMENTS, TRAINABLE, Checkpoint, load_checkpoint
from gtp_exp.gradients.collect import collect as collect_store
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.engines.adapters import check_differentiable
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.store import GradientStore
from gtp_exp.model.loading import context_of
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)

LONGEST = 1024  # tokens of a row, as in the shipped models' configurations


def collect(
    model: torch.nn.Module,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any] | Example],
    path: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    checkpoints: Sequence[str | os.PathLike[str]] | None = None,
    settings: GradientConfig | None = None,
) -> GradientStore:
    """Store the sketched gradient of each row's mean completion loss, and return the store.

    model: a transformers causal language model on any device, with LoRA or with requires_grad set on what
    is to be tuned; it is left as it was found. tokenizer: its own, a fast one; it is not changed.
    rows: dicts with `messages` (a list of {role, content}), or `prompt` and `completion`, or alpaca's
    `instruction`, `input` and `output`; an `id` each, or they are numbered. Row i of the store is rows[i].
    path: the store's folder; an interrupted call goes on there. None: a temporary one, until Python ends.
    max_length: tokens after which a row is cut; None: 1024, or what the model takes if that is less.
    checkpoints: folders of a warm-up's checkpoints (outputs/cache/warmup/KEY/checkpoint-0, ...). None: one
    checkpoint, the model as it is, and no warm-up.
    settings: directions, sketch, storage and engine; None: plain gradients (sgd), a CountSketch of dimension
    8192, float16. Pool and target must be collected with the same settings.

    Raises UserError for rows that cannot be read or have no completion token, and for a model that has
    nothing to train. A row whose gradient is not finite is quarantined: `gtp_exp.select` passes it over.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("gradients cannot be taken in torch.inference_mode(); call collect outside of it")
    if isinstance(checkpoints, (str, os.PathLike)):
        raise UserError(f"checkpoints={str(checkpoints)!r} is one path; give a list of folders")
    if settings is not None and not isinstance(settings, GradientConfig):
        raise UserError(
            f"settings is a {type(settings).__name__}; give a GradientConfig of gtp_exp.gradients.settings"
        )
    if settings is None:
        settings = GradientConfig(directions=[Direction.SGD])
    if checkpoints is None and set(settings.directions) != {Direction.SGD}:
        raise UserError(
            f"settings.directions={[d.value for d in settings.directions]}: adam and less read the moments "
            "of a warm-up; give its checkpoints, or set directions=[Direction.SGD]"
        )
    examples = _tokenized(_examples(rows), tokenizer, _max_length(model, max_length))
    folder = _temporary("store") if path is None else at_home(path)
    if checkpoints is not None:
        trajectory = [load_checkpoint(Path(checkpoint)) for checkpoint in checkpoints]
        return _collect(model, examples, trajectory, folder, settings)
    own = _temporary("checkpoint")
    try:
        return _collect(model, examples, [_as_it_is(model, own)], folder, settings)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _collect(
    model: torch.nn.Module,
    examples: Sequence[TokenizedExample],
    checkpoints: Sequence[Checkpoint],
    folder: Path,
    settings: GradientConfig,
) -> GradientStore:
    store = collect_store(model, examples, checkpoints, folder, settings, label="gradients")
    if len(store.quarantined):
        names = ", ".join(store.ids[i] for i in store.quarantined[:5].tolist())
        log.warning("the gradient of %d of %d rows is not finite: %s", len(store.quarantined), store.n, names)
    return store


def _examples(rows: Sequence[Mapping[str, Any] | Example]) -> tuple[Example, ...]:
    """Read the rows as a data set's are read; raise UserError where one would be left out."""
    rows = rows if isinstance(rows, (str, bytes, Mapping)) else list(rows)
    if not isinstance(rows, list) or not all(isinstance(row, (Mapping, Example)) for row in rows):
        raise UserError("rows must be a list of dicts with `messages`, or with `prompt` and `completion`")
    if not rows:
        raise UserError("there is no example to collect a gradient of; rows is empty")
    records, examples = [], []
    for number, row in enumerate(rows, 1):
        if isinstance(row, Example):
            examples.append(row)
        else:
            form = detect_layout(row, f"rows:{number}", ReadAs(), stem="row")
            records.append((Place("rows", number), row, form))
    if examples and records:
        raise UserError("rows mixes Examples with dicts; give either")
    if examples:
        return tuple(examples)
    pool = read_pool(records, seen={})
    if pool.skipped:
        raise UserError(f"rows holds rows without a completion: {dict(pool.skipped)}; remove them")
    return pool.examples


def _tokenized(examples: Sequence[Example], tokenizer: Any, max_length: int) -> tuple[TokenizedExample, ...]:
    """Tokenise every row; raise UserError, by id, where one keeps no completion token."""
    tokenizer = copy.deepcopy(tokenizer)
    check_vocabulary(tokenizer, str(tokenizer.name_or_path) or "the model")
    ensure_chat_template(tokenizer)
    tokens = tokenize(examples, tokenizer, max_length=max_length)
    for reason, ids in tokens.excluded.items():
        if ids:
            raise UserError(
                f"{len(ids)} of {len(examples)} rows have no gradient ({reason}): {', '.join(ids[:5])}; "
                f"remove them, or raise max_length={max_length}"
            )
    if tokens.truncated:
        log.warning("cut %d of %d rows to max_length=%d", len(tokens.truncated), len(examples), max_length)
    return tokens.examples


def _max_length(model: torch.nn.Module, asked: int | None) -> int:
    config = getattr(model, "config", None)
    context = context_of(config) if isinstance(config, PretrainedConfig) else None
    if asked is None:
        return min(LONGEST, context or LONGEST)
    if context is not None and asked > context:
        raise UserError(f"max_length={asked} exceeds the model's context of {context} tokens")
    return asked


def _as_it_is(model: torch.nn.Module, folder: Path) -> Checkpoint:
    """Save what is trainable as a checkpoint without moments: the model before any step."""
    parameters = check_differentiable(model)
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / TRAINABLE)
    save_file({}, folder / MOMENTS)
    return Checkpoint(folder, step=0, learning_rate=1.0)


def _temporary(what: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"gtp-exp-{what}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
