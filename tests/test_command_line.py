"""The command line as a person meets it: processes, their exit status, what they print and leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import pytest
from options import option
from toy import TOY

from gtp_exp.config import build
from gtp_exp.launch.launcher import Launch, run_worker
from gtp_exp.records.record import RUN_FILES, WORKER_LOG

ROOT = Path(__file__).resolve().parents[1]
# This checkout's code, also where another one is installed.
PATHS = [ROOT / "tests", ROOT, ROOT / "baselines", ROOT / "benchmarks"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}


def command(*overrides):
    flags = [o for o in overrides if o.startswith("-")]
    rest = [o for o in overrides if not o.startswith("-")]
    conf = ["--config-dir", str(ROOT / "tests" / "conf")]
    return [sys.executable, "-m", "gtp_exp", *conf, *flags, *TOY, *rest]


def call(folder, *overrides):
    return forked.run(command(*overrides), folder, ENVIRONMENT)


def call_fresh(folder, *overrides):
    return subprocess.run(command(*overrides), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def record(folder):
    (path,) = folder.glob("outputs/runs/**/results.json")
    return json.loads(path.read_text())


def test_no_process_imports_what_it_can_do_without():
    code = "import sys, importlib"
    for module, absent in [  # one after another: what is absent after the next import was so before
        ("gtp_exp.worker", "hydra"),
        ("gtp_exp.worker", "torch"),
        ("gtp_exp.__main__", "torch"),
        ("gtp_exp.leaderboard", "torch"),
        ("gtp_exp.experiment", "peft"),
        ("gtp_exp.experiment", "transformers.modeling_utils"),
    ]:
        code += f"\nimportlib.import_module('{module}'); print('{module}', '{absent}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 6 and "True" not in done.stdout, done.stdout


def test_help_and_the_composed_config_are_printed(tmp_path):
    shown = call_fresh(tmp_path, "--help")
    assert shown.returncode == 0 and "selector: " in shown.stdout and "gtp-exp -m" in shown.stdout
    job = call_fresh(tmp_path, "--cfg=job")
    assert "_target_: gtp_exp.model.loading.ModelConfig" in job.stdout
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["selector=gpt"], "selector/gpt"),
        (["experiment=headlin"], "experiment/headlin"),
        (["hparams_search=optun"], "hparams_search/optun"),
        (["+train.lrr=1"], "train.lrr"),
        (["launch.device=tpu"], "launch.device"),
        (["~gradients"], "no gradients"),
        (["train.learning_rate=nan"], "train.learning_rate=nan"),
        (["+job.name=mine"], "job is what a run writes"),
    ],
)
def test_a_wrong_override_is_named_without_a_traceback(tmp_path, overrides, named):
    done = call(tmp_path, "selector=random", *overrides)
    assert done.returncode != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "named"), [("launch.threads=0", "launch.threads"), ("tests=[no]", "tests")]
)
def test_a_refused_job_leaves_the_earlier_result_of_a_fixed_folder(tmp_path, wrong, named):
    folder = tmp_path / "outputs" / "runs" / "fixed"
    folder.mkdir(parents=True)
    for name in ("results.json", "selected.jsonl", "resolved.yaml"):
        (folder / name).write_text("earlier")
    done = call(tmp_path, "selector=random", "hydra.run.dir=outputs/runs/fixed", wrong)
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr
    assert {path.read_text() for path in folder.iterdir()} == {"earlier"}


OF_OTHERS = ["model/weights.bin", "selected/x.csv", "selected.jsonl", "results.json", "metrics.jsonl"]
OF_OTHERS += ["row_results.safetensors", "tensorboard/notes.txt", "worker.log"]


@pytest.mark.parametrize("name", OF_OTHERS)
def test_a_folder_with_files_of_others_is_refused_before_they_are_replaced(tmp_path, name):
    precious = tmp_path / "project" / name
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    done = call(tmp_path, "selector=random", "until=selection", "hydra.run.dir=project")
    assert done.returncode == 2 and "was left there by no run" in done.stderr
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("text", ["benchmark.target=dé.jsonl", "dataset.files=[a b (1).jsonl]", "seed=[1"])
def test_what_hydra_cannot_read_is_said_with_how_to_quote_it(tmp_path, text):
    done = call(tmp_path, "selector=random", text)
    assert done.returncode == 2 and f"{text} cannot be read; " in done.stderr and "quotes" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("text", ["hydra/launcher=submitit_slurm", "hydra/sweeper=optuna"])
def test_one_job_with_what_only_a_multirun_heeds_is_refused_before_it_runs_here(tmp_path, text):
    done = call(tmp_path, text, "selector=random", "until=selection")
    assert done.returncode == 2 and not list(tmp_path.rglob("results.json"))
    assert f"error: {text} is heeded in a multirun alone, and one job would run here; add -m" in done.stderr


def test_in_a_multirun_one_failing_job_stops_no_other(tmp_path):
    done = call(tmp_path, "-m", "selector=random", "budget=rows", "budget.amount=999,4")
    assert done.returncode == 1 and "1 job(s) failed" in done.stderr and "Traceback" not in done.stderr
    states = {}
    for path in tmp_path.glob("outputs/runs/*/*/results.json"):
        found = json.loads(path.read_text())
        states[found["config"]["budget"]["amount"]] = found["state"], found["error"], found["group"]
    assert states[4][0] == "complete"
    assert states[999][0] == "failed" and "999 rows" in states[999][1]
    assert states[4][2] == states[999][2]
    assert not list(tmp_path.rglob("multirun.yaml"))  # Hydra's: it tells folders of this machine


def test_the_jobs_of_a_multirun_share_its_group_wherever_their_folders_lie(tmp_path):
    below = "hydra.sweep.subdir=${hydra:runtime.choices.selector}/seed${seed}"
    sweep = ["hydra.sweep.dir=outputs/runs/mine", below, "selector=random,full", "until=selection"]
    done = call(tmp_path, "-m", *sweep)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/mine/*/seed0/results.json")]
    assert [run["group"] for run in found] == ["mine", "mine"]


def running_worker(folder, deadline=60.0):
    """The worker of a job started in `folder`, once it has begun its record."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = status.read_bytes().split(b"\0")
                inside = (status.parent / "cwd").resolve() == folder.resolve()
            except OSError:
                continue
            started = list(folder.glob("outputs/runs/**/results.json"))
            if inside and b"gtp_exp.worker" in arguments and started:
                return int(status.parent.name)
        time.sleep(0.05)
    raise AssertionError("no worker appeared")


def gone(pid, deadline=30.0):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("victim", "number", "state"),
    [
        ("parent", signal.SIGTERM, "interrupted"),
        ("parent", signal.SIGKILL, "interrupted"),
        ("worker", signal.SIGTERM, "interrupted"),
        ("worker", signal.SIGKILL, "failed"),
    ],
)
def test_parent_and_worker_end_together_and_the_record_says_how(tmp_path, victim, number, state):
    parent = subprocess.Popen(
        command("selector=random", "dataset.rows=4000", "budget=100pct"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = running_worker(tmp_path)
    os.kill(parent.pid if victim == "parent" else worker, number)
    _, printed = parent.communicate(timeout=60)
    assert parent.returncode != 0 and gone(worker)
    assert record(tmp_path)["state"] == state
    if state == "failed":
        assert parent.returncode == 128 + number and "the worker was killed by signal 9" in printed


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")])
def test_a_job_is_whole_where_the_environment_tells_of_ranks_of_another_launcher(tmp_path, names):
    told = {**dict(zip(names, ("1", "2"), strict=True)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    done = forked.run(command("selector=random"), tmp_path, {**ENVIRONMENT, **told}, timeout=90)
    assert done.returncode == 0 and record(tmp_path)["state"] == "complete", done.stderr


def test_a_job_without_enough_memory_says_which_settings_need_less(tmp_path):
    done = call(tmp_path, "dataset._target_=toy.HugePool", "selector=random")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "memory ran out (" in done.stderr and "lower train.micro_batch_size" in done.stderr
    left = record(tmp_path)
    assert left["state"] == "failed" and left["error"].startswith("memory ran out (")


def test_an_interrupted_worker_is_not_interrupted_again_while_it_cleans_up():
    code = """
import os, signal
from gtp_exp import worker
for number in worker.INTERRUPTS:
    signal.signal(number, worker._interrupt)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    for number in worker.INTERRUPTS:
        os.kill(os.getpid(), number)
    print("cleaned up")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "cleaned up\n", done.stderr


def test_a_hang_up_that_is_ignored_stops_no_job(tmp_path, monkeypatch):
    """What nohup promises."""
    launch = build(option("launch", "cpu"), "launch")
    monkeypatch.setattr(Launch, "command", lambda self, resolved: ["sleep", "1"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGHUP)).start()
        assert run_worker(tmp_path / "resolved.yaml", launch).code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_ctrl_c_ends_a_multirun_at_the_current_job(tmp_path):
    parent = subprocess.Popen(
        command("-m", "selector=random,full", "dataset.rows=4000", "budget=100pct"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and all they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    worker = running_worker(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to parent and worker
    _, printed = parent.communicate(timeout=60)
    assert parent.returncode == 130 and gone(worker)
    assert "interrupted" in printed and "Traceback" not in printed
    assert record(tmp_path)["state"] == "interrupted"  # of the one job that had begun


def test_an_outputs_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for outputs in ("file", "file/below"):
        done = call(tmp_path, f"outputs={outputs}")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"outputs={outputs} cannot be a folder: 'file' is a file" in done.stderr
    done = call(tmp_path, f"outputs={'x' * 300}")
    assert done.returncode == 2 and "File name too long" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("flags", "key"), [([], "hydra.run.dir"), (["-m"], "hydra.sweep.dir")])
def test_a_folder_of_runs_that_cannot_be_made_is_refused(tmp_path, flags, key):
    (tmp_path / "file").write_text("")
    for folder, why in [
        ("file", "cannot be a folder: 'file' is a file"),
        ("file/below", "cannot be a folder: 'file' is a file"),
        ("x" * 300, "cannot be made (File name too long)"),
    ]:
        done = call(tmp_path, *flags, f"{key}={folder}")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"error: {key}={folder} {why}; give another {key}=DIR" in done.stderr


@pytest.mark.parametrize(("flags", "key"), [([], "hydra.run.dir"), (["-m"], "hydra.sweep.dir")])
def test_a_folder_of_runs_may_lie_in_the_home_folder(tmp_path, flags, key):
    home = tmp_path / "who's home"
    job = command(*flags, f"{key}='~/runs'", "selector=random", "until=selection")
    done = forked.run(job, tmp_path, {**ENVIRONMENT, "HOME": str(home)})
    assert done.returncode == 0, done.stderr
    (left,) = home.glob("runs/**/results.json")
    assert str(home) not in left.read_text() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("outputs=", "outputs= names no folder; give outputs=DIR"),
        ("outputs=null", "outputs=null names no folder; give outputs=DIR"),
        ("outputs=[a]", "outputs=[a] names no folder; give outputs=DIR"),
        ("outputs=2026", "outputs=2026 is a number, not a folder's name; give it as \"outputs='2026'\""),
        ("hydra.run.dir=", "hydra.run.dir= names no folder; give hydra.run.dir=DIR"),
        ("hydra.run.dir=null", "hydra.run.dir=null names no folder; give hydra.run.dir=DIR"),
    ],
)
def test_what_names_no_folder_is_refused(tmp_path, text, words):
    done = call(tmp_path, text)
    assert (done.returncode, done.stderr) == (2, f"error: {words}\n")
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_is_a_number_can_be_given(tmp_path):
    done = call(tmp_path, "outputs='2026'", "hydra.run.dir=7", "selector=random", "until=selection")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026", "7"]


@pytest.mark.parametrize("flag", ["-h", "--help", "--cfg=job", "--info=searchpath"])
def test_what_only_shows_something_needs_no_folder(tmp_path, flag):
    (tmp_path / "file").write_text("")
    shown = call(tmp_path, flag, "outputs=file")
    assert shown.returncode == 0 and not shown.stderr, shown.stderr


def test_the_version_is_told_at_once(tmp_path):
    from gtp_exp import __version__

    done = subprocess.run(
        [sys.executable, "-m", "gtp_exp", "--version"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"gtp-exp {__version__}\n")


def test_a_runs_resolved_configuration_is_run_again_from_the_cache(tmp_path):
    first = call(tmp_path, "selector=random", "model=tiny", "until=selection", "tracking=none", "seed=3")
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    written = {path.name for path in run.iterdir()}  # and all of it is kept where others have left it
    assert {WORKER_LOG, "resolved.yaml"} <= written <= {*RUN_FILES, "resolved.yaml"}
    chose, labels, rows, cost, hint = first.stdout.splitlines()
    assert chose.startswith("chose 2 of 40 rows: ") and "skill" in labels and cost.startswith("cost: ")
    folder = f"outputs/runs/{run.name}/selected"
    assert rows == f"rows: {folder}.jsonl, and {folder} for load_dataset"
    assert hint.startswith(f"next: gtp-exp-export outputs/runs/{run.name} --format trl --out FOLDER")
    saved = (run / "resolved.yaml").read_text()  # one that was written under an earlier name
    (run / "resolved.yaml").write_text(saved.replace("gtp_exp.model.loading.Model", "gtp_exp.models.Model"))
    line = [sys.executable, "-m", "gtp_exp", "--config-dir", str(run), "--config-name", "resolved"]
    foretold = forked.run([*line, "--estimate"], tmp_path, ENVIRONMENT)
    assert foretold.returncode == 0, foretold.stderr
    assert foretold.stdout.startswith("1 job: selector=random, budget=5pct, model=tiny, dataset=toy")
    assert "the cache holds every stage" in foretold.stdout
    again = forked.run(line, tmp_path, ENVIRONMENT)
    assert again.returncode == 0, again.stderr
    (second,) = set((tmp_path / "outputs" / "runs").iterdir()) - {run}
    old, new = (json.loads((folder / "results.json").read_text()) for folder in (run, second))
    assert new["names"] == old["names"] and new["seed"] == 3
    assert new["stages"]["selection"] == {**old["stages"]["selection"], "cached": True, "spent": 0.0}
    assert new["selection"]["indices_ids"] == old["selection"]["indices_ids"]


def test_a_preset_runs_without_a_word_more_and_into_its_own_folder(tmp_path):
    line = [sys.executable, "-m", "gtp_exp", "experiment=demo", "+debug=quick", "selector=random"]
    settings = ["until=selection", "seed=0,1"]
    done = forked.run([*line, *settings], tmp_path, ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/runs/demo/*/results.json"))) == 2


def test_a_path_means_the_same_in_every_key(tmp_path, tiny):
    """~ is the home folder; other paths are relative to where the command was started, chdir or not."""
    home, work = tmp_path / "home", tmp_path / "work"
    shutil.copytree(tiny.location, home / "models" / "mine")
    work.mkdir()
    for file, numbers in ((work / "pool.jsonl", range(8)), (home / "rows.jsonl", range(8, 16))):
        rows = [{"prompt": f"What is {i} plus 2?", "completion": f"{i + 2}"} for i in numbers]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ["dataset=jsonl", "benchmark=pool_held_out", "benchmark.test_rows=2", "selector=random"]
    paths = [
        'outputs="~/out"',
        "model.source=hub",
        'model.name_or_path="~/models/mine"',
        'dataset.files=["~/rows.jsonl",pool.jsonl]',
        "hydra.job.chdir=true",
    ]
    environment = {**ENVIRONMENT, "HOME": str(home)}
    done = subprocess.run(
        command(*job, "budget=50pct", "until=selection", *paths),
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (home / "out" / "runs").iterdir()
    told = json.loads((run / "results.json").read_text())
    assert told["state"] == "complete" and told["pool"]["rows"] == 16
    assert told["config"]["outputs"] == "~/out" and str(home) not in json.dumps(told)
    assert (home / "out" / "cache" / "selection").is_dir()
    assert [path.name for path in work.iterdir()] == ["pool.jsonl"]
