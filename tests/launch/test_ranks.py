"""How jobs of several processes end: the one cause is told, every process ends, and each has time to save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import small_ranks
from small_ranks import run
from test_command_line import ENVIRONMENT, gone

from gtp_exp.launch.heartbeat import NAME as HEARTBEAT
from gtp_exp.launch.launcher import JobExit, Launch, follower_log

READY = "(folder / 'ready').touch(); time.sleep(600)"
# Takes its time to save, and says how often it was asked to.
SAVES = f"""\
def save(*_):
    open(folder / "saved", "a").write("asked "); time.sleep(1.0); os._exit(130)
signal.signal(signal.SIGTERM, save); {READY}
"""
STUBBORN = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The run folder of a job of small ranks."""
    small_ranks.write(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]]))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return tmp_path


def does(monkeypatch, *ranks):
    for rank, code in enumerate(ranks):
        monkeypatch.setenv(f"DOES_{rank}", code)


def nothing_is_left(folder):
    """Return whether the ranks have gone, and no file of theirs stays in the system's temporary folder."""
    return all(gone(int(path.read_text())) for path in folder.glob("pid*")) and not list(
        (folder / "temporary").iterdir()
    )


EXITS = {
    "none": (["pass", "pass"], JobExit(0, 0)),
    "both, the main one later": (["time.sleep(0.5); sys.exit(2)", "sys.exit(2)"], JobExit(2, 0)),
    "one alone": (["time.sleep(600)", "sys.exit(3)"], JobExit(3, 1)),
    "one is killed, the other ends of it": (
        ["sys.exit(1)", "time.sleep(0.5); os.kill(os.getpid(), 9)"],
        JobExit(-9, 1),
    ),
    "one, and the other is to be killed": ([STUBBORN, "sys.exit(3)"], JobExit(3, 1)),
}
OTHERWISE = ["one is killed, the other ends of it"]


@pytest.mark.parametrize(
    ("asked", "file", "threads"),
    [
        ({"num_processes": 4}, None, "2"),
        ({"num_processes": 16}, None, "1"),
        ({"num_processes": 8}, "num_machines: 2\nmachine_rank: 1\nnum_processes: 8\n", "2"),  # four on each
    ],
)
def test_processes_share_the_cores_that_a_job_may_use_on_their_machine(
    tmp_path, monkeypatch, asked, file, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    if file is not None:
        (tmp_path / "accelerate.yaml").write_text(file)
        asked = {**asked, "config_file": str(tmp_path / "accelerate.yaml")}
    assert Launch(**asked).environment()["OMP_NUM_THREADS"] == threads


@LINUX
@pytest.mark.parametrize(
    ("name", "accelerate"), [*((name, False) for name in EXITS), *((name, True) for name in OTHERWISE)]
)
def test_the_one_cause_is_told_and_torch_says_nothing(folder, monkeypatch, capfd, name, accelerate):
    codes, expected = EXITS[name]
    does(monkeypatch, *codes)
    assert run(folder, accelerate=accelerate) == expected
    assert capfd.readouterr() == ("", "") and nothing_is_left(folder)


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", -9)])
def test_the_one_worker_that_accelerate_starts_is_told_of_too(folder, monkeypatch, code, expected):
    does(monkeypatch, code)
    assert run(folder, 1, accelerate=True) == JobExit(expected, 0)


def test_each_exit_is_one_line():
    assert str(JobExit(-9, 1)) == "process 1 was killed by signal 9; see worker.rank1.log"
    assert str(JobExit(2, 0)) == "the worker ended with status 2" and JobExit(2, 0).told
    assert str(JobExit(-9, None)) == "the parent of the workers was killed by signal 9"
    assert JobExit(-9, 1).status == 137 and not JobExit(-9, 1).told and not JobExit(1, None).told


def test_the_main_process_writes_to_the_terminal_and_others_into_files(folder, monkeypatch, capfd):
    tell = "print(os.environ['OMP_NUM_THREADS'], os.environ['LOCAL_RANK'], file=sys.stderr)"
    does(monkeypatch, tell, tell)
    assert run(folder, threads=3) == JobExit(0, 0)
    assert capfd.readouterr().err == "3 0\n"
    assert (folder / follower_log(1)).read_text() == "3 1\n"


@LINUX
@pytest.mark.parametrize(
    ("processes", "rank_0", "accelerate"),
    [(2, SAVES, False), (2, STUBBORN, False), (1, SAVES, True)],
    ids=["torch", "stubborn", "one of accelerate"],
)
def test_a_limit_ends_every_rank_which_has_time_to_save(folder, monkeypatch, processes, rank_0, accelerate):
    does(monkeypatch, rank_0, READY)

    def beat():
        """Show progress until the ranks are ready, and none from then on."""
        count = 0
        while not (folder / "ready").exists() and count < 600:
            count += 1
            (folder / HEARTBEAT).write_text(str(count))
            time.sleep(0.1)

    threading.Thread(target=beat).start()
    ended = run(folder, processes, accelerate=accelerate, stall_limit_minutes=0.05)
    still_run = [path for path in folder.glob("pid*") if Path(f"/proc/{path.read_text()}").exists()]
    assert not still_run  # the job ends after its ranks, which have had their time
    assert ended.status == 124 and "0.05 minutes without progress" in str(ended)
    assert (folder / "ready").exists() and nothing_is_left(folder)
    assert (folder / "saved").exists() == (rank_0 == SAVES)


def started(folder, monkeypatch):
    """A launcher whose job's two ranks have begun, and the process id of their parent."""
    does(monkeypatch, SAVES, "time.sleep(600)")
    launcher = subprocess.Popen(
        [sys.executable, small_ranks.__file__, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("pid*"))) < 2 or not (folder / "ready").exists():
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.05)
    status = Path(f"/proc/{(folder / 'pid0').read_text()}/stat").read_text()
    return launcher, int(status.rsplit(") ", 1)[1].split()[1])


@LINUX
def test_signals_that_come_again_do_not_cut_the_time_to_save_short(folder, monkeypatch):
    launcher, parent = started(folder, monkeypatch)
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
        os.kill(parent, signum)
        time.sleep(0.1)
    assert launcher.communicate(timeout=60)[0] == "the worker ended with status 130\n"
    assert launcher.returncode == 130
    assert (folder / "saved").read_text() == "asked " and nothing_is_left(folder)


@LINUX
def test_a_terminal_interrupts_the_job_once(folder, monkeypatch):
    launcher, parent = started(folder, monkeypatch)
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=60)
    assert (folder / "saved").read_text() == "asked " and nothing_is_left(folder) and gone(parent)


@LINUX
@pytest.mark.parametrize("victim", ["launcher", "parent"])
def test_ranks_end_with_what_has_started_them(folder, monkeypatch, victim):
    launcher, parent = started(folder, monkeypatch)
    os.kill(launcher.pid if victim == "launcher" else parent, signal.SIGKILL)
    said = launcher.communicate(timeout=60)[0]
    assert nothing_is_left(folder) and gone(parent)
    # Linux tells of the end of each thread of a process that had several; a worker heeds the first.
    assert (folder / "saved").read_text().startswith("asked ")
    assert said == ("" if victim == "launcher" else "the parent of the workers was killed by signal 9\n")


@pytest.mark.parametrize("module", ["small_rank", "gtp_exp.worker"])
def test_a_rank_whose_parent_is_gone_already_does_not_begin(folder, monkeypatch, module):
    does(monkeypatch, "")
    done = subprocess.run([sys.executable, "-m", module, folder / "resolved.yaml", "1"], capture_output=True)
    assert done.returncode == 1 and not done.stderr and not (folder / "pid0").exists()
