"""A job that is forked from the server is what a fresh process is; and who ends with whom.

Jobs here are short texts of Python. What they are forked from has imported next to nothing, so it starts at
once; a real job is at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_command_line import ENVIRONMENT, command, gone

from gtp_exp.launch import fork_server
from gtp_exp.launch.fork_server import SERVE, ForkedJob, is_clean, start_job
from gtp_exp.launch.launcher import Device, Launch, _is_forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a server forks on Linux only")

WORKER = f"""
import os, signal, sys
from gtp_exp.launch.fork_server import serve
asked = sys.argv[1] == "{SERVE}"
path = serve(int(sys.argv[2]), ("numpy.random", "missing", "state")) if asked else sys.argv[1]
exec(open(path).read())
"""
STATE = """
import json, random, sys
import numpy, state
told = {
    "environment": dict(os.environ), "folder": os.getcwd(), "state": state.value, "sys.argv": sys.argv[1:],
    "handlers": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    "threads": len(os.listdir("/proc/self/task")), "path": sys.path, "late": __import__("late").value,
    "collects": __import__("gc").isenabled(),
}
drawn = [random.random(), float(numpy.random.random())]
os.environ["CHANGED"], state.value, numpy.random.random = "yes", "changed", None
os.chdir("/")
open(sys.argv[1] + ".json", "w").write(json.dumps([told, drawn]))
"""


class Jobs:
    """Starts texts of Python as jobs, and knows the command of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, dict(ENVIRONMENT)
        (folder / "worker.py").write_text(WORKER)
        (folder / "state.py").write_text("value = 'fresh'")

    def command(self, text: str) -> list[str]:
        path = self.folder / f"job{len(list(self.folder.glob('job*')))}"
        path.write_text(text)
        return [sys.executable, str(self.folder / "worker.py"), str(path)]

    def start(self, text: str) -> ForkedJob:
        return start_job(self.command(text), self.environment)

    def fresh(self, text: str) -> int:
        return subprocess.run(self.command(text), env=self.environment, stderr=subprocess.DEVNULL).returncode

    def running(self, text: str) -> ForkedJob:
        """Return a job once it has come to the end of `text`, from where on it waits."""
        job = self.start(f"{text}\nopen('{self.folder}/here', 'w').close()\nimport time; time.sleep(60)")
        end = time.monotonic() + 30
        while not (self.folder / "here").exists() or job.pid is None:  # a job may be there before it is told
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        (self.folder / "here").unlink()
        assert job.poll() is None and job.pid is not None
        return job


@pytest.fixture
def jobs(tmp_path):
    yield Jobs(tmp_path)
    if fork_server._current is not None:
        fork_server._current.close()
        fork_server._current = None


def server_pid() -> int:
    assert fork_server._current is not None
    return fork_server._current.process.pid


def test_no_job_sees_what_another_has_changed_and_all_see_what_a_fresh_process_sees(jobs):
    (jobs.folder / "late.py").write_text("value = 1")
    assert jobs.start(STATE).wait(30) == jobs.start(STATE).wait(30) == jobs.fresh(STATE) == 0
    first, second, fresh = (json.loads(path.read_text()) for path in sorted(jobs.folder.glob("job*.json")))
    for told, _ in (first, second, fresh):
        (path,) = told.pop("sys.argv")
        assert path.startswith(str(jobs.folder / "job"))
        told["threads"] = min(told["threads"], 1)  # of a fresh process, numpy's have already started
    assert first[0] == second[0] == fresh[0]
    assert not set(first[1]) & set(second[1])  # unseeded generators are not copies of one another


def test_a_module_that_is_written_while_the_server_waits_is_found(jobs):
    assert jobs.start("").wait(30) == 0
    (jobs.folder / "late.py").write_text("value = 1")
    assert jobs.start("import late; sys.exit(late.value + 1)").wait(30) == 2


ENDS = {
    "": 0,
    "sys.exit(1)": 1,
    "sys.exit(2)": 2,
    "os._exit(130)": 130,
    "raise ValueError": 1,
    "os.kill(os.getpid(), signal.SIGSEGV)": -signal.SIGSEGV,
    "os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
    "os.abort()": -signal.SIGABRT,
}


def test_however_a_job_ends_the_launcher_is_told_and_the_server_lives_on(jobs):
    assert jobs.start("").wait(30) == 0
    server = server_pid()
    for text, code in ENDS.items():
        quiet = f"os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n{text}"
        assert jobs.start(quiet).wait(30) == code == jobs.fresh(text), text
    assert server_pid() == server


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_forked_job_multiplies_with_as_many_threads_as_a_fresh_process(jobs, threads):
    jobs.environment["OMP_NUM_THREADS"] = threads
    text = """
import json, numpy
a = numpy.random.default_rng(0).random((300, 300))
product = (a @ a).tobytes().hex()
told = [product, len(os.listdir("/proc/self/task"))]
open(sys.argv[1] + ".json", "w").write(json.dumps(told))
sys.exit(5 if "state" in sys.modules else 0)
"""
    assert jobs.start(text).wait(30) == 5  # it was forked
    assert jobs.fresh(text) == 0
    first, second = (json.loads(path.read_text()) for path in jobs.folder.glob("job*.json"))
    assert first == second


def test_another_environment_or_folder_gets_another_server(jobs, monkeypatch):
    text = f"open('{jobs.folder}/told', 'w').write(os.environ['OMP_NUM_THREADS'] + os.getcwd())"
    seen, servers = [], []
    for threads, folder in [("1", "/tmp"), ("1", "/tmp"), ("2", "/tmp"), ("2", "/")]:
        monkeypatch.chdir(folder)
        jobs.environment["OMP_NUM_THREADS"] = threads
        assert jobs.start(text).wait(30) == 0
        seen.append((jobs.folder / "told").read_text())
        servers.append(server_pid())
    assert seen == ["1/tmp", "1/tmp", "2/tmp", "2/"]
    assert servers[0] == servers[1] and len(set(servers)) == 3
    assert all(gone(pid) for pid in servers[:-1])


def test_a_job_is_terminated_and_one_that_does_not_listen_is_killed(jobs):
    job = jobs.running("signal.signal(signal.SIGTERM, lambda *_: os._exit(130))")
    job.terminate()
    assert job.wait(30) == 130
    job = jobs.running("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    job.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(0.3)
    job.kill()
    assert job.wait(30) == -signal.SIGKILL and gone(job.pid)
    assert jobs.start("").wait(30) == 0


def test_ctrl_c_at_a_terminal_interrupts_the_job_and_not_the_server(jobs):
    job = jobs.running("signal.signal(signal.SIGINT, lambda *_: os._exit(130))")
    server = server_pid()
    for pid in (server, job.pid):
        os.kill(pid, signal.SIGINT)
    assert job.wait(30) == 130
    os.kill(server, signal.SIGINT)  # between two jobs
    assert not gone(server, 0.3)
    assert jobs.start("").wait(30) == 0 and server_pid() == server


def test_the_server_passes_sigterm_on_and_ends_by_it_when_it_is_idle(jobs):
    job = jobs.running("signal.signal(signal.SIGTERM, lambda *_: os._exit(130))")
    server = server_pid()
    os.kill(server, signal.SIGTERM)
    assert job.wait(30) == 130
    os.kill(server, signal.SIGTERM)
    assert gone(server)
    assert jobs.start("").wait(30) == 0 and server_pid() != server


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_server_that_crashes_takes_its_job_along_and_the_next_one_gets_a_new_server(jobs, number):
    end = f"def end(*_):\n    time.sleep(0.5); open('{jobs.folder}/end', 'w').close(); os._exit(0)"
    job = jobs.running(f"import time\n{end}\nsignal.signal(signal.SIGTERM, end)")
    server = server_pid()
    os.kill(server, number)
    assert job.wait(30) == -number
    assert (jobs.folder / "end").exists()  # the job has been given the time to end by itself
    assert gone(job.pid)
    assert jobs.start("sys.exit(2)").wait(30) == 2 and server_pid() != server


def test_what_a_job_has_started_and_left_keeps_the_launcher_not_waiting(jobs):
    helper = "signal.signal(signal.SIGTERM, signal.SIG_DFL); os.execlp('sleep', 'sleep', '60')"
    forked = f"child = os.fork()\nif not child: {helper}\nopen('{jobs.folder}/child', 'w').write(str(child))"
    job = jobs.running(forked)
    os.kill(server_pid(), signal.SIGKILL)
    assert job.wait(30) == -signal.SIGKILL
    child = int((jobs.folder / "child").read_text())
    assert not gone(child, 0.0)
    os.kill(child, signal.SIGKILL)


def test_a_server_that_ends_before_the_job_begins_is_a_job_that_failed(jobs):
    (jobs.folder / "state.py").write_text("import os; os._exit(3)")
    assert jobs.start("").wait(30) == 3
    (jobs.folder / "state.py").write_text("")
    assert jobs.start("").wait(30) == 0


def test_a_server_that_hangs_is_killed_with_its_job(jobs):
    job = jobs.running("")
    os.kill(server_pid(), signal.SIGSTOP)
    job.kill()
    assert job.wait(30) == -signal.SIGKILL
    assert jobs.start("").wait(30) == 0


def test_a_job_left_alone_is_ended_when_the_next_one_starts(jobs):
    job = jobs.running("")
    assert jobs.start("").wait(30) == 0
    assert gone(job.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_and_job_end_with_the_launcher(jobs, number):
    (jobs.folder / "told").touch()
    told = f"open('{jobs.folder}/told', 'w').write(f'{{os.getppid()}} {{os.getpid()}}.')"
    line = jobs.command(f"{told}\nimport time; time.sleep(60)")
    code = (
        f"from gtp_exp.launch.fork_server import start_job; import os; start_job({line}, os.environ).wait()"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], env=jobs.environment)
    end = time.monotonic() + 30
    while "." not in (jobs.folder / "told").read_text() and time.monotonic() < end:
        time.sleep(0.02)
    server, job = map(int, (jobs.folder / "told").read_text().strip(".").split())
    os.kill(launcher.pid, number)
    launcher.wait(30)
    assert gone(job) and gone(server)


def test_after_an_import_that_starts_threads_each_job_gets_a_fresh_process(jobs):
    (jobs.folder / "state.py").write_text(
        "import signal, threading; threading.Thread(target=signal.pause, daemon=True).start(); value = 0"
    )
    text = "sys.exit(len(sys.argv) if 'state' in sys.modules else 7)"
    assert jobs.start(text).wait(30) == 7
    assert jobs.start("os.kill(os.getpid(), signal.SIGTERM)").wait(30) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("threads", "files", "expected"),
    [
        ([], ["/dev/null", "pipe:[1]"], True),
        (["jemalloc_bg_thd"], [], True),
        (["python"], [], False),
        ([], ["/dev/nvidiactl"], False),
        ([], ["/dev/kfd"], False),
    ],
)
def test_what_is_safe_to_fork(threads, files, expected):
    assert is_clean(threads, files) == expected


def test_which_jobs_are_forked(tmp_path):
    launch = Launch(Device.CPU)
    assert _is_forked(launch) and not _is_forked(replace(launch, num_processes=2))
    file = tmp_path / "accelerate.yaml"
    file.write_text("num_machines: 1\n")
    assert not _is_forked(replace(launch, config_file=str(file)))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(_is_forked(launch)))
    thread.start()
    thread.join()
    assert answers == [False]


def timeless(value):
    """Return a part of a record without the seconds in it."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def outcome(folder: Path) -> dict[str, object]:
    """Return the bytes of all that a job has left, by its place, without what tells the time."""
    entries = folder / "outputs" / "cache"
    found: dict[str, object] = {
        str(path.relative_to(entries)): path.read_bytes()
        for path in entries.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".bin", ".jsonl")
    }
    (path,) = folder.glob("outputs/runs/**/results.json")
    told = json.loads(path.read_text())
    stages = {name: stage["key"] for name, stage in told["stages"].items()}
    log = [line.split(" ", 1)[1] for line in (path.parent / "worker.log").read_text().splitlines()]
    return found | {
        "log": [line.split(" in ")[0] for line in log],
        "stages": stages,
        **{key: timeless(told[key]) for key in ("state", "selection", "pool")},
    }


def test_a_forked_job_leaves_the_same_bytes_as_a_fresh_one(tmp_path):
    job = ["selector=gtp", "budget=10pct", "until=selection"]
    outcomes = []
    for name, flags in {"fresh": [], "forked": ["-m"]}.items():
        (tmp_path / name).mkdir()
        done = subprocess.run(
            command(*flags, *job), cwd=tmp_path / name, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outcomes.append(outcome(tmp_path / name))
    assert outcomes[0].keys() == outcomes[1].keys()
    assert {key for key in outcomes[0] if outcomes[0][key] != outcomes[1][key]} == set()
