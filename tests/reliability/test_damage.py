"""Damage in the cache of a finished run: named, made again, and no other result."""

from __future__ import annotations

import random

import pytest
from reliability.damage import Way, damage, entries, files, noticed
from test_experiment import run

JOBS = [["selector=perplexity_top", "until=selection"], ["selector=less", "gradients.engine=hooks"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return outputs, [run(outputs, *job) for job in JOBS]


@pytest.mark.parametrize("way", list(Way))
def test_a_damaged_file_of_every_entry_is_named_and_the_result_stays(finished, caplog, way):
    outputs, before = finished
    rng = random.Random(way.value)
    chosen = {entry: rng.choice(files(entry)) for entry in entries(outputs)}
    stages = {entry.parent.name for entry in chosen}
    assert stages == {"models", "warmup", "gradients", "pass", "selection", "finetune", "evaluation"}
    for file in chosen.values():
        damage(file, way, rng)
    after = [run(outputs, *job) for job in JOBS]
    assert [file for entry, file in chosen.items() if not noticed(file, entry, caplog.messages)] == []
    for old, new in zip(before, after, strict=True):
        assert old.selection.indices_ids == new.selection.indices_ids
        assert old.selection.weights == new.selection.weights
        assert old.metrics == new.metrics and old.untuned == new.untuned
