"""Tracking mirrors metrics.jsonl and can neither stop nor hang a run."""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import leaderboard_runs
import pytest
from test_experiment import JOB, run

from gtp_exp.leaderboard import main as leaderboard
from gtp_exp.leaderboard.tracked import COLUMNS, linked_back
from gtp_exp.records.address import public_address
from gtp_exp.records.record import METRICS_NAME, RunRecord
from gtp_exp.tracking import Journal, NoTracking, RunInfo
from gtp_exp.tracking.tensorboard import TensorBoardTracking
from gtp_exp.tracking.wandb import WandbMode, WandbTracking, wandb_mode


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """No key, no W&B state of the person who runs the tests, nor of an earlier test: the library reads the
    environment once."""
    import wandb

    wandb.teardown()
    names = ("API_KEY", "MODE", "DATA_DIR", "CACHE_DIR", "DIR", "PROJECT", "ENTITY", "DISABLED", "TAGS")
    names += ("RUN_ID", "SWEEP_ID")
    for name in names:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")  # set by a test, it is as before afterwards
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # set by a test, gone afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    return tmp_path


def session(tracker, directory):
    directory.mkdir(exist_ok=True)
    tracker.start(RunInfo("run", "sweep", directory, {"seed": 0}))
    journal = Journal(directory / "metrics.jsonl", tracker)
    journal.event("finetune", {"step": 1, "loss": 2.0})
    tracker.table("selected", ["id", "weight"], [["a", 1.0]])
    tracker.finish({"acc": 0.5}, exit_code=0)
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # as at the end of a process: what was told is on the disk now
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
    ("machine", "told"),
    [
        ("127.0.0.1:9", "online did not start (Failed to get"),  # no server is there
        ("wandb.example.org", "no API key"),  # the key of another server
    ],
)
def test_a_key_counts_where_it_is_one_of_the_server_that_is_meant(
    isolated, monkeypatch, caplog, machine, told
):
    (isolated / "keys").write_text(f"machine {machine} login user password {'0123456789' * 4}\n")
    (isolated / "keys").chmod(0o600)
    monkeypatch.setenv("NETRC", str(isolated / "keys"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    session(WandbTracking("p", None, WandbMode.ONLINE, 1.0).tracker(), isolated / "run")
    assert told in caplog.text and caplog.text.count("did not start") == 1
    assert list((isolated / "run" / "wandb").glob("offline-run-*"))


def test_a_server_that_does_not_answer_is_told_and_the_run_is_tracked_offline(isolated, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    session(WandbTracking("p", None, WandbMode.ONLINE, 1.0).tracker(), isolated / "run")
    assert "W&B: online did not start" in caplog.text and "offline did not start" not in caplog.text
    files = list((isolated / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert any(b"finetune/loss" in file.read_bytes() for file in files)
    assert not any(b"0123456789" * 4 in p.read_bytes() for p in (isolated / "run").rglob("*") if p.is_file())


class Server(BaseHTTPRequestHandler):
    """Answers as W&B's server where a run begins, and from then on that it is not available."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        query, name = asked.get("query", ""), asked.get("variables", {}).get("name")
        known = self.path == "/graphql" and not self.server.gone
        self.server.gone = self.server.gone or "UpsertBucket" in query
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        run = {"id": "x", "name": name, "displayName": "run", "historyLineCount": 0, "project": project}
        data = {"upsertBucket": {"bucket": run, "inserted": True}} if "UpsertBucket" in query else {}
        body = json.dumps({"data": data}).encode()
        self.send_response(200 if known else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_server_that_goes_away_does_not_hold_the_end_of_a_run(isolated, monkeypatch, caplog):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.gone = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    settings = WandbTracking("p", None, WandbMode.ONLINE, 20.0, finish_timeout_s=1.0)
    session(settings.tracker(), isolated / "run")
    server.shutdown()
    (folder,) = (isolated / "run" / "wandb").glob("run-*")
    told = f"did not take the end of the run within 1 seconds; `wandb sync {folder}` sends it"
    assert server.gone and told in caplog.text and "did not start" not in caplog.text
    (file,) = folder.glob("run-*.wandb")
    assert b"finetune/loss" in file.read_bytes()


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


def test_the_event_log_is_json_where_a_number_is_not_finite(tmp_path):
    def no_json(constant):
        raise AssertionError(f"{constant} is no JSON")

    seen = []
    tracker = SimpleNamespace(event=lambda kind, values: seen.append(values))
    values = {"step": 1, "loss": 2.0, "grad_norm": math.nan, "learning_rate": math.inf}
    Journal(tmp_path / "metrics.jsonl", tracker).event("finetune", values)
    told = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=no_json)
    del told["time"]
    assert told == {"kind": "finetune", "step": 1, "loss": 2.0, "grad_norm": None, "learning_rate": None}
    assert seen == [values]  # a tracker shows by its own means that a number is not finite


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: after 7 bytes, blocks of 32 KiB of parts with a header of checksum,
    length and kind (1: whole, 2, 3, 4: first, middle and last part), as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def contents(directory: Path) -> dict[str, Any]:
    """Return what the offline runs in a folder hold: config, tags, summary, history and files."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, Any] = {"config": {}, "summary": {}, "history": [], "files": [], "id": file.stem[4:]}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            found |= {"tags": list(record.run.tags), "host": record.run.host, "resume": record.run.resume}
        elif kind == "summary":
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
            found["summary"] |= items
        elif kind == "history":
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found["history"].append(items)
        elif kind == "files":
            found["files"] += [item.path for item in record.files.files]
    return found


def names_of_this_machine(files: list[Path], folder: Path) -> list[str]:
    """Return which names of the user, the machine and its folders stand in the files. A name of one or two
    letters is left out: binary files hold it by chance."""
    private = [getpass.getuser(), socket.gethostname(), str(folder), str(Path.home()), os.getcwd()]
    held = [file.read_bytes() for file in files]
    return [name for name in private if len(name) > 2 and any(name.encode() in text for text in held)]


OPTIONS = {"selector": "less", "dataset": "toy", "experiment": None}


@pytest.fixture
def tracked_job(isolated, monkeypatch):
    """A function that runs a job with tracking=wandb, its paths relative; its folder."""
    monkeypatch.chdir(isolated)

    def start(directory: str, *overrides: str):
        monkeypatch.setitem(JOB, "names", OPTIONS)
        tracking = ["tracking=wandb", *overrides]
        return run(Path("outputs"), "selector=less", *tracking, directory=Path(directory)), Path(directory)

    return start


def test_an_offline_run_holds_options_curves_and_metrics_and_nothing_of_this_machine(tracked_job, isolated):
    record, directory = tracked_job("outputs/runs/one")
    found = contents(directory)
    assert found["tags"] == ["selector=less", "dataset=toy"]
    assert found["config"]["options"] == {"selector": "less", "dataset": "toy"}
    assert found["config"]["seed"] == 0 and "outputs" not in found["config"]
    assert found["host"] == "" and found["resume"]
    assert [Path(name).parts[:2] for name in found["files"]] == [("media", "table")]
    nats = record.metrics["toy_sums"]["nats_per_token"]
    untuned = record.untuned["toy_sums"]["nats_per_token"]
    assert found["summary"]["toy_sums/nats_per_token"] == pytest.approx(nats)
    assert found["summary"]["untuned/toy_sums/nats_per_token"] == pytest.approx(untuned)
    headline = record.metrics["toy_sums"][record.metrics["toy_sums"]["headline"]]
    assert found["summary"]["headline"] == pytest.approx(headline)
    told = [item for item in found["history"] if "finetune/loss" in item]
    assert [item["finetune/step"] for item in told] == [1]
    table = json.loads(next(directory.glob("wandb/offline-run-*/files/media/table/*.json")).read_text())
    assert table["columns"][:2] == ["rank", "id"] and len(table["data"]) == 4

    left = [file for file in directory.rglob("*") if file.is_file() and "wandb" in file.parts]
    assert {file.suffix for file in left} == {".wandb", ".json"}
    assert not names_of_this_machine(left, isolated)
    assert not (isolated / "home").exists()


def test_the_same_job_started_again_is_the_same_run_with_the_whole_curve(tracked_job):
    _, first = tracked_job("outputs/runs/one")
    _, again = tracked_job("outputs/runs/two", "launch=auto")  # every stage is in the cache
    _, other = tracked_job("outputs/runs/three", "seed=1")
    assert contents(first)["id"] == contents(again)["id"] != contents(other)["id"]
    curves = [
        [item["warmup/loss"] for item in contents(folder)["history"] if "warmup/loss" in item]
        for folder in (first, again)
    ]
    assert curves[0] == curves[1] and len(curves[0]) > 1


def test_losses_are_told_while_the_training_runs(tracked_job, monkeypatch):
    """The event log has a step's loss before the next step begins, and every step once."""
    from gtp_exp.training import trainer

    seen = []
    before = trainer.Progress.on_step_end

    def look(self, *arguments, **more):
        lines = (Path("outputs/runs/live") / METRICS_NAME).read_text().splitlines()
        seen.append([json.loads(line)["kind"] for line in lines].count(self.label.replace("-", "")))
        return before(self, *arguments, **more)

    monkeypatch.setattr(trainer.Progress, "on_step_end", look)
    tracked_job("outputs/runs/live", "train.min_steps=3")
    n_warmup = len(seen) - 3
    assert seen[n_warmup:] in ([0, 1, 2], [1, 2, 3]) and seen[:n_warmup][-1] >= n_warmup - 1
    lines = [json.loads(line) for line in (Path("outputs/runs/live") / METRICS_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "finetune"] == [1, 2, 3]


def test_a_run_that_goes_on_online_tells_no_step_twice(isolated, monkeypatch):
    import wandb

    class Going:
        resumed, summary, step = True, {"finetune/step": 2}, 0
        told: list[Any] = []

        def define_metric(self, *_, **__): ...

        def log(self, values):
            self.told.append(values)

    monkeypatch.setattr(wandb, "init", lambda **_: Going())
    tracker = WandbTracking(mode=WandbMode.OFFLINE).tracker()
    tracker.start(RunInfo("run", "sweep", isolated, {}))
    for step in (1, 2, 3):
        tracker.event("finetune", {"step": step, "loss": 1.0})
    tracker.event("stage", {"seconds": 1.0})
    assert [values.get("finetune/step") for values in Going.told] == [3, None]


def test_a_run_that_a_sweep_or_a_person_has_named_keeps_its_name(isolated, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "agents-own")
    monkeypatch.setenv("WANDB_TAGS", "mine")
    session(WandbTracking(timeout_s=5.0).tracker(), isolated / "run")
    found = contents(isolated / "run")
    assert found["id"] == "agents-own" and found["tags"] == ["mine"]


def test_the_job_decides_the_id_and_where_it_runs_does_not():
    config = {
        "seed": 0,
        "outputs": "a",
        "launch": {"device": "cpu"},
        "dataset": {"files": ["/home/u/x.jsonl"]},
    }
    job = RunInfo("one", "g", Path("x"), config)
    moved = RunInfo("two", "h", Path("y"), {**config, "outputs": "/b", "launch": {}, "tracking": {}})
    assert job.content == moved.content != RunInfo("one", "g", Path("x"), {**config, "seed": 1}).content
    assert job.shared_config == {"seed": 0, "dataset": {"files": ["x.jsonl"]}}
    assert config["dataset"]["files"] == ["/home/u/x.jsonl"]


def test_tensorboard_shows_curves_options_and_metrics_and_not_the_host(tmp_path, monkeypatch):
    """The same Protocol, read back by TensorBoard's own reader."""
    from tensorboard.backend.event_processing import event_accumulator as accumulators

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(JOB, "names", OPTIONS)
    job = ["selector=less", "tracking=tensorboard", "train.min_steps=3"]
    for _ in range(2):  # the second start in the same folder leaves one curve, all stages being in the cache
        record = run(Path("outputs"), *job, directory=Path("one"))
    folder = tmp_path / "one" / "tensorboard"
    files = sorted(file.name for file in folder.iterdir())
    assert len(files) == 2 and not any(socket.gethostname() in name.split(".") for name in files)
    read = accumulators.EventAccumulator(str(folder)).Reload()
    curve = [json.loads(line) for line in Path("one/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in curve if line["kind"] == "finetune"][-3:]
    shown = read.Scalars("finetune/loss")
    assert [e.step for e in shown] == [1, 2, 3] and [e.value for e in shown] == pytest.approx(losses)
    nats = record.metrics["toy_sums"]["nats_per_token"]
    assert read.Scalars("toy_sums/nats_per_token")[-1].value == pytest.approx(nats)
    assert "untuned/headline" in read.Tags()["scalars"]
    assert {"config/text_summary", "selected/text_summary", "state/text_summary"} <= set(
        read.Tags()["tensors"]
    )
    table = read.Tensors("selected/text_summary")[0].tensor_proto.string_val[0].decode()
    assert (
        table.startswith("rank | id | weight") and len(table.splitlines()) == 2 + record.selection.n_selected
    )
    assert all(str(tmp_path).encode() not in file.read_bytes() for file in folder.iterdir())


def test_tensorboard_that_breaks_does_not_break_the_run(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where the folder would be")
    assert len(session(TensorBoardTracking().tracker(), tmp_path / "run")) == 1
    assert "TensorBoard: did not start" in caplog.text


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://wandb.ai/me/p/runs/a1", "https://wandb.ai/me/p/runs/a1"),
        ("https://wandb.ai/me/p/runs/a1?apiKey=fedcba987654#x", "https://wandb.ai/me/p/runs/a1"),
        ("https://me:secret@own.host:8443/me/p/runs/a1", "https://own.host:8443/me/p/runs/a1"),
        *[
            (text, None)
            for text in ("http://wandb.ai/a", "javascript:alert(1)", "https://", "", "//wandb.ai/a")
        ],
        *[(text, None) for text in ("https://[::1/a", "https://a.b:x/c", "https://a.b/\n", None, 3)],
    ],
)
def test_an_address_is_kept_if_it_is_https_and_without_what_may_be_a_key(given, kept):
    assert public_address(given) == kept


def test_the_record_of_an_online_run_holds_its_address_and_that_of_an_offline_one_none(
    tracked_job, monkeypatch
):
    import wandb

    record, directory = tracked_job("outputs/runs/offline")
    assert record.tracked_at is None and "tracked_at" not in record.to_json()
    monkeypatch.setattr(wandb.Run, "url", "https://wandb.ai/me/p/runs/a1?apiKey=fedcba987654")
    record, directory = tracked_job("outputs/runs/online")
    assert record.tracked_at == "https://wandb.ai/me/p/runs/a1"
    written = json.dumps(record.to_json())
    assert RunRecord.from_json(json.loads(written)) == record and "fedcba987654" not in written


def test_a_leaderboard_is_reported_offline_with_its_page_and_its_links(isolated, monkeypatch, capsys):
    import wandb

    monkeypatch.chdir(isolated)
    for i, selector in enumerate(("gtp", "random")):
        for seed in (0, 1):
            made = leaderboard_runs.record(selector, seed, loss=2.0 + 0.1 * i + 0.02 * seed)
            at = f"https://wandb.ai/me/p/runs/{selector}{seed}" if seed else None
            leaderboard_runs.save(replace(made, tracked_at=at), isolated / "runs")
    assert leaderboard(["runs", "--out", "board", "--wandb"]) == 0
    wandb.teardown()
    told = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"W&B: offline; send it by wandb sync board/wandb/offline-run-\S+", told)
    assert Path(told.split()[-1]).is_dir()
    found = contents(Path("board"))
    assert found["config"]["runs"] == [f"https://wandb.ai/me/p/runs/{name}1" for name in ("gtp", "random")]
    (page,) = Path("board").glob("wandb/offline-run-*/files/media/html/*.html")
    assert page.read_text() == Path("board/index.html").read_text()
    (table,) = Path("board").glob("wandb/offline-run-*/files/media/table/*.json")
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in json.loads(table.read_text())["data"]]
    assert [row["selector"] for row in rows] == ["gtp", "random"]
    assert rows[0]["mean"] == pytest.approx(2.11) and rows[0]["seeds"] == 2 and rows[0]["rank"] == 1
    assert rows[0]["runs"].split()[1] == "https://wandb.ai/me/p/runs/gtp1"
    assert found["host"] == ""
    written = Path("board/wandb").rglob("*")
    left = [file for file in written if file.suffix in (".wandb", ".json")]  # the page is compared above
    assert left and not names_of_this_machine(left, isolated)


def test_ranked_runs_get_the_leaderboards_address_where_they_can_be_changed():
    class Summary(dict):
        def update(self):
            if self.pop("locked", False):
                raise PermissionError("not yours")

    runs = {"me/p/a1": Summary(), "me/p/a2": Summary(locked=True)}
    api = SimpleNamespace(run=lambda path: SimpleNamespace(summary=runs[path]))
    addresses = [f"https://wandb.ai/me/p/runs/{name}" for name in ("a1", "a2")]
    addresses += ["https://else.where/me/p/runs/a3", "https://wandb.ai/odd"]
    told = linked_back(api, addresses, "https://wandb.ai/me/p/runs/board")
    assert told == ", linked from 1 of 4 online runs; not yours"
    assert runs["me/p/a1"] == {"leaderboard": "https://wandb.ai/me/p/runs/board"}
