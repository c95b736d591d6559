"""The script that kills jobs, on one kill: what was promised holds, and it would tell if not."""

from __future__ import annotations

import sys

import pytest
from reliability import soak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kill_changes_nothing(tmp_path):
    tally = soak.soak(kills=1, seed=0, root=tmp_path, in_a_row=1, pairs=False)
    assert tally.violations == [] and len(tally.kills) == 1
    assert "1 kills" in soak.report(tally, 1.0)


def test_a_touched_entry_and_a_half_one_that_passes_for_whole_are_told(tmp_path):
    entry = tmp_path / "cache" / "s" / "key"
    entry.mkdir(parents=True)
    (entry / "manifest.json").write_text("{}")
    before = soak.snapshot(tmp_path)
    (entry / "manifest.json").write_text("{ }")
    told = list(soak.check_stopped(tmp_path, before, soak.snapshot(tmp_path)))
    assert len(told) == 2 and "was touched" in told[0] and "passes for finished" in told[1]
