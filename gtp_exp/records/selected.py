"""Write the chosen rows as a data set that others can load, and say what the hidden labels tell."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_exp.data.examples import Example, Message, Pool, TokenizedExample
from gtp_exp.data.near_duplicates import near_duplicates
from gtp_exp.data.rendering import as_dict
from gtp_exp.files import sha256_file
from gtp_exp.records.record import SELECTED_FOLDER, SelectedRow, SelectionSummary, write_selected
from gtp_exp.selection.base import Selection

LENGTH = "length in tokens"  # the one label that every pool has
# Hidden labels that name the row of which a row is a copy, in other words or the same.
COPY_LABELS = ("copy_of", "duplicate_of")
ANSWER_LABEL = "label"  # the hidden label that says which of a task's few answers a row teaches
MANY_VALUES = 50  # a label with more values is reported as present or absent


def selected_rows(
    candidates: Sequence[Example],
    tokenized: Sequence[TokenizedExample],
    selection: Selection,
    hidden: Mapping[str, Mapping[str, Any]],
) -> list[SelectedRow]:
    """Return the chosen rows, most important first, each with what `hidden` says of it by id.

    tokenized: the candidates as the model reads them, which tells the answers that carry no loss.
    """
    chosen = []
    for rank, (i, weight) in enumerate(
        zip(selection.indices.tolist(), selection.weights.tolist(), strict=True), 1
    ):
        example = candidates[i]
        messages = _as_exported(example.messages, tokenized[i].turns)
        score = float(selection.scores[i])
        chosen.append(
            SelectedRow(
                rank, example.id, weight, score, messages, dict(hidden.get(example.id, {})), example.tools
            )
        )
    return chosen


def _as_exported(
    messages: Sequence[Message], with_loss: Sequence[int] | None
) -> tuple[Mapping[str, Any], ...]:
    """Return messages as other people's tools read them; a weight of 0 marks an answer that carries no loss.

    with_loss: the messages that carry loss, where known. A chat template may remove the reasoning of earlier
    answers, which are then not trained, though nothing in the row says so.
    """
    told = []
    for k, message in enumerate(messages):
        left_out = message.role == "assistant" and with_loss is not None and k not in with_loss
        told.append({**as_dict(message), **({"weight": 0} if left_out or not message.train else {})})
    return tuple(told)


def export(chosen: Sequence[SelectedRow], directory: Path, title: str) -> None:
    """Write selected.jsonl with the hidden labels, for reports, and selected/ without, for `load_dataset`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_selected(chosen, directory)
    folder = directory / SELECTED_FOLDER
    shutil.rmtree(folder / "data", ignore_errors=True)  # of an earlier job in this folder
    (folder / "data").mkdir(parents=True)
    tools = {"tools": [r.tools for r in chosen]} if any(r.tools for r in chosen) else {}
    table = pa.table(
        {
            "id": [r.id for r in chosen],
            "messages": [[dict(m) for m in r.messages] for r in chosen],
            **tools,
            "gtp_weight": pa.array([r.weight for r in chosen], pa.float32()),
            "gtp_score": pa.array([r.score for r in chosen], pa.float32()),
        }
    )
    unnamed = folder / "data" / "train.parquet"
    pq.write_table(table, unnamed)
    # `datasets` knows a local folder again by its last name and its card alone, and all of ours are called
    # `selected`: by the digest in the card it tells one selection from another.
    named = unnamed.with_stem(f"train-{sha256_file(unnamed)[:16]}")
    unnamed.rename(named)
    card = _CARD.format(title=title, n=len(chosen), file=named.name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def summarise_selection(
    chosen: Sequence[SelectedRow],
    pool: Pool,
    tokenized: Sequence[TokenizedExample],
    selection: Selection,
    target: Sequence[Example] = (),
) -> SelectionSummary:
    """Compare the chosen rows with the pool, and count duplicates. tokenized: every candidate."""
    n_tokens = [row.n_tokens for row in tokenized]
    chosen_tokens = [n_tokens[i] for i in selection.indices.tolist()]
    texts = [json.dumps([r.messages, r.tools], sort_keys=True, ensure_ascii=False) for r in chosen]
    pool_labels = [pool.hidden.get(example.id, {}) for example in pool.examples]
    labels = sorted({label for row in pool_labels for label in row})
    wanted = target_labels(pool_labels, target)
    taught = Counter(label for r in chosen if (label := str(r.hidden.get(ANSWER_LABEL))) in wanted)
    grouped = {label for label in labels if _is_class(label, pool_labels, pool)}
    return SelectionSummary(
        n_selected=len(chosen),
        n_tokens=sum(chosen_tokens),
        indices_ids=tuple(r.id for r in chosen),
        weights=tuple(r.weight for r in chosen),
        diagnostics=selection.diagnostics,
        label_mix={label: _mix([r.hidden for r in chosen], label, label in grouped) for label in labels}
        | {LENGTH: _lengths(chosen_tokens)},
        pool_mix={label: _mix(pool_labels, label, label in grouped) for label in labels}
        | {LENGTH: _lengths(n_tokens)},
        exact_duplicates=len(texts) - len(set(texts)),
        n_cut=sum(tokenized[i].cut for i in selection.indices.tolist()),
        near_duplicates=sum(near_duplicates([_text(r.messages) for r in chosen])),
        target_labels=len(wanted),
        labels_chosen=len(taught),
        labels_entropy=entropy(taught.values()) if wanted else None,
        repeats=_repeats(chosen) if set(COPY_LABELS) & set(labels) else None,
    )


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the turns of a chosen row as `Example.text` has them."""
    return " ".join(m[name] for m in messages for name in ("reasoning_content", "content") if m.get(name))


def _repeats(chosen: Sequence[SelectedRow]) -> int:
    """Return the number of chosen rows less that of their originals: what is no copy is its own."""
    originals = {next((r.hidden[name] for name in COPY_LABELS if r.hidden.get(name)), r.id) for r in chosen}
    return len(chosen) - len(originals)


def entropy(counts: Iterable[int]) -> float:
    """Return the entropy in bits of what was counted so often: log2 n where n things came equally often."""
    counts = list(counts)
    total = sum(counts)
    return sum(n / total * math.log2(total / n) for n in counts)


def target_labels(pool_labels: Sequence[Mapping[str, Any]], target: Sequence[Example]) -> set[str]:
    """Return the values of the pool's hidden label `label` that are answers of target rows; all of its values
    where none is, or without target rows."""
    in_pool = {str(row[ANSWER_LABEL]) for row in pool_labels if row.get(ANSWER_LABEL) is not None}
    return in_pool & {example.completion for example in target} or in_pool


def _is_class(label: str, pool_labels: Sequence[Mapping[str, Any]], pool: Pool) -> bool:
    """Tell whether the values of a label are classes: few, and none of them the id of a row."""
    values = {str(row[label]) for row in pool_labels if row.get(label) is not None}
    return len(values) <= MANY_VALUES and values.isdisjoint(example.id for example in pool.examples)


def _mix(rows: Sequence[Mapping[str, Any]], label: str, grouped: bool) -> dict[str, float]:
    """Return the share of each value, most frequent first."""
    values = [
        str(row.get(label)) if grouped else ("absent" if row.get(label) is None else "present")
        for row in rows
    ]
    return {value: n / len(rows) for value, n in Counter(values).most_common()} if rows else {}


def _lengths(n_tokens: Sequence[int]) -> dict[str, float]:
    """Return the share of each length class, shortest first; a class spans a factor of two."""
    lower = Counter(0 if n < 32 else 1 << (n.bit_length() - 1) for n in n_tokens)
    return {
        f"{start or 1}-{2 * start - 1 if start else 31}": n / len(n_tokens)
        for start, n in sorted(lower.items())
    }


_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/{file}
tags:
- instruction-tuning
- data-selection
---
# {title}

{n} rows, most important first. Columns: `id`, `messages` (role and content), `gtp_weight` (>= 0, mean 1) and
`gtp_score` (larger is better; its meaning depends on the selector).
Load with `datasets.load_dataset("path/to/this/folder", split="train")`. `results.json` and `resolved.yaml` of
the run say how they were chosen. The rows keep the licence of the pool they come from.
"""
