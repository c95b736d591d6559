"""Tracking mirrors metrics.jsonl and can neither stop nor hang a run."""

from __future__ import annotations

import json

import pytest

from gtp_exp.tracking import Journal, NoTracking, RunInfo, WandbMode, WandbTracking


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """No key, no W&B state of the person who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    return tmp_path


def session(tracker, directory):
    directory.mkdir(exist_ok=True)
    tracker.start(RunInfo("run", "sweep", directory, {"seed": 0}))
    journal = Journal(directory / "metrics.jsonl", tracker)
    journal.event("finetune", {"step": 1, "loss": 2.0})
    tracker.table("selected", ["id", "weight"], [["a", 1.0]])
    tracker.finish({"acc": 0.5}, exit_code=0)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_wandb_offline_leaves_a_run_to_sync(isolated):
    events = session(WandbTracking("p", None, WandbMode.OFFLINE, 5.0).tracker(), isolated / "run")
    assert events[0]["loss"] == 2.0
    assert list((isolated / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_online_without_a_key_goes_offline_without_asking(isolated, caplog):
    session(WandbTracking("p", None, WandbMode.ONLINE, 5.0).tracker(), isolated / "run")
    assert "no API key" in caplog.text
    assert list((isolated / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("message", "told"), [("server on fire", "server on fire"), ("", "RuntimeError"), ("\n", "RuntimeError")]
)
def test_a_tracker_that_breaks_does_not_break_the_run(isolated, monkeypatch, caplog, message, told):
    import wandb

    def broken(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(wandb, "init", broken)
    events = session(WandbTracking("p", None, WandbMode.OFFLINE, 5.0).tracker(), isolated / "run")
    assert len(events) == 1 and f"did not start ({told})" in caplog.text


def test_a_tracker_that_breaks_later_and_says_nothing_does_not_break_the_run(isolated, monkeypatch, caplog):
    import wandb

    def broken(*_, **__):
        raise AssertionError()

    tracker = WandbTracking("p", None, WandbMode.OFFLINE, 5.0).tracker()
    tracker.start(RunInfo("run", "sweep", isolated, {}))
    started = wandb.run
    assert started is not None
    monkeypatch.setattr(started, "log", broken)
    tracker.event("finetune", {"loss": 2.0})
    tracker.event("finetune", {"loss": 1.0})  # no longer sent
    started.finish()
    assert caplog.text.count("stopped tracking (AssertionError)") == 1


def test_no_tracking_still_writes_the_journal(tmp_path):
    assert session(NoTracking().tracker(), tmp_path / "run")[0]["kind"] == "finetune"
