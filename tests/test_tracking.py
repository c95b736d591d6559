"""Tracking mirrors metrics.jsonl and can neither stop nor hang a run."""

from __future__ import annotations

import json

import pytest

from gtp_exp.tracking import Journal, NoTracking, RunInfo
from gtp_exp.tracking.wandb import WandbMode, WandbTracking, wandb_mode


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """No key, no W&B state of the person who runs the tests, nor of an earlier test: the library reads the
    environment once."""
    import wandb

    wandb.teardown()
    names = ("API_KEY", "MODE", "DATA_DIR", "DIR", "PROJECT", "ENTITY", "DISABLED")
    for name in names:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")  # set by a test, it is as before afterwards
    monkeypatch.delenv("WANDB_MODE")
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


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": ""}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": " Online "}, "online"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
        ({"WANDB_DISABLED": ""}, "offline"),
    ],
)
def test_the_environment_says_the_mode_where_the_settings_do_not(environment, mode, caplog):
    assert wandb_mode(WandbTracking(), environment) == mode
    assert wandb_mode(WandbTracking(mode=WandbMode.ONLINE), environment) == "online"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("mode", ["shared", "sideways"])  # the library knows the first, and not the other
def test_a_mode_that_nobody_knows_is_told_and_tracked_offline(isolated, monkeypatch, caplog, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    session(WandbTracking(timeout_s=5.0).tracker(), isolated / "run")
    assert caplog.text.count(f"WANDB_MODE={mode} is none of offline, online, disabled; tracking offline") == 1
    assert "did not start" not in caplog.text
    assert list((isolated / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_project_and_folder_of_the_environment_are_taken(isolated, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine-to-find")
    monkeypatch.setenv("WANDB_DIR", str(isolated / "there"))
    session(WandbTracking(timeout_s=5.0).tracker(), isolated / "run")
    (file,) = (isolated / "there" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"mine-to-find" in file.read_bytes() and b"gtp-exp" not in file.read_bytes()
    session(WandbTracking(project="said", timeout_s=5.0).tracker(), isolated / "run")
    files = (isolated / "there" / "wandb").glob("offline-run-*/run-*.wandb")
    assert any(b"said" in file.read_bytes() for file in files)


def test_a_folder_that_cannot_be_made_does_not_stop_the_run(isolated, monkeypatch, caplog):
    (isolated / "file").write_text("")
    monkeypatch.setenv("WANDB_DIR", str(isolated / "file" / "there"))
    assert len(session(WandbTracking(timeout_s=5.0).tracker(), isolated / "run")) == 1
    assert "W&B: offline did not start" in caplog.text


def test_tracking_that_is_off_leaves_nothing(isolated, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "true")
    session(WandbTracking(timeout_s=5.0).tracker(), isolated / "run")
    assert [path.name for path in (isolated / "run").iterdir()] == ["metrics.jsonl"]


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
