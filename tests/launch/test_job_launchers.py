"""Multiruns by other means than one job after another: joblib, submitit on this machine, Optuna."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from test_command_line import ENVIRONMENT, command

import gtp_exp.__main__
from gtp_exp.errors import UserError
from gtp_exp.launch.launcher import Launch

# How each is asked for, and for which amounts: 999 is more than there is.
LAUNCHERS = {
    "joblib": (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], ["999", "4", "5"]),
    "submitit": (["hydra/launcher=submitit_local"], ["4", "5"]),
}


def results(folder: Path) -> list[dict]:
    """Return the results of a multirun's jobs, in their order."""
    paths = sorted(folder.glob("outputs/runs/*/*/results.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_jobs_at_the_same_time_share_stages_and_a_failing_one_stops_no_other(tmp_path, name):
    pytest.importorskip(f"hydra_plugins.hydra_{name}_launcher")
    launcher, amounts = LAUNCHERS[name]
    jobs = ["selector=less", "budget=rows", f"budget.amount={','.join(amounts)}", "until=selection"]
    line = command("-m", *launcher, *jobs)
    done = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    found = results(tmp_path)
    fails = "999" in amounts
    assert done.returncode == fails and "Traceback" not in done.stderr
    too_many = "0_less_rows_toy_seed0: budget.amount=999 rows is more than the 40 candidates"
    assert (too_many in done.stderr) == fails
    assert [one["state"] for one in found] == ["failed"] * fails + ["complete"] * 2
    assert len({one["group"] for one in found}) == 1
    logs = [path.read_text() for path in tmp_path.glob("outputs/runs/*/*/worker.log")]
    for stage in ("warmup", "gradients: pool", "gradients: target"):
        assert sum(f"{stage}: done" in log for log in logs) == 1, stage
        assert sum(f"{stage}: reused" in log for log in logs) >= 1, stage


def test_optuna_is_told_the_validation_loss_and_which_trials_failed(tmp_path):
    pytest.importorskip("optuna")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=random"]
    sweeper += ["hydra.sweeper.seed=0"]  # one trial of each learning rate
    trials = ["hydra.sweeper.n_trials=2", "hydra.sweeper.max_failure_rate=1.0"]
    swept = [
        "until=validation",
        "selector=random",
        "budget=rows",
        "budget.amount=4",
        "train.learning_rate=choice(-1.0,1e-3)",
    ]
    done = forked.run(command("-m", *sweeper, *trials, *swept), tmp_path, ENVIRONMENT, timeout=300)
    found = results(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(one["state"] for one in found) == ["complete", "failed"]
    assert re.search(r"trial \d failed: .*learning_rate=-1.0", done.stdout), done.stdout
    (report,) = tmp_path.glob("outputs/runs/*/optimization_results.yaml")
    (complete,) = (one for one in found if one["state"] == "complete")
    assert f"best_value: {complete['validation']['tuned']['nats_per_token']}" in report.read_text()
    assert "train.learning_rate: 0.001" in report.read_text()


@pytest.mark.parametrize(
    ("launcher", "mode", "expected"),
    [
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", RunMode.RUN, False),
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", RunMode.MULTIRUN, True),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", RunMode.MULTIRUN, True),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", RunMode.MULTIRUN, False),
    ],
)
def test_only_a_command_line_that_runs_several_jobs_starts_a_process_to_fork_them(
    tmp_path, monkeypatch, launcher, mode, expected
):
    given = {}
    hydra = SimpleNamespace(mode=mode, launcher=SimpleNamespace(_target_=launcher))
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(gtp_exp.__main__, "prepare_job", lambda config, directory: (Launch(), directory))
    monkeypatch.setattr(gtp_exp.__main__, "run_job", lambda *_, **options: given.update(options) or 0)
    assert gtp_exp.__main__._run(OmegaConf.create(), tmp_path) == 0
    assert given == {"more_follow": expected}


@pytest.mark.parametrize(("kind", "processes"), [("NO", 1), ("MULTI_GPU", 2)])
def test_a_mistake_is_told_in_one_line_through_accelerate_too(tmp_path, kind, processes):
    """Accelerate starts one process by itself, and several through torchrun."""
    (tmp_path / "accelerate.yaml").write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: '{kind}'\nnum_machines: 1\n"
    )
    launched = ["launch.config_file=accelerate.yaml", f"launch.num_processes={processes}"]
    line = command("selector=random", "budget=rows", "budget.amount=999", *launched)
    done = forked.run(line, tmp_path, ENVIRONMENT, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "budget.amount=999 rows is more than the 40 candidates" in done.stderr.strip().splitlines()[-1]


def launch_with(file: Path) -> Launch:
    return Launch(num_processes=4, config_file=str(file))


@pytest.mark.parametrize(
    "line", ["num_processes: two", "num_machines: many", "machine_rank: x", "fsdp_config: yes\nx: 1"]
)
def test_a_value_of_accelerates_configuration_that_is_of_no_use_is_refused(tmp_path, line):
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"distributed_type: FSDP\n{line}\n")
    key = line.partition(":")[0]
    with pytest.raises(UserError, match=rf"accelerate.yaml is not a configuration of Accelerate \(.*{key}"):
        launch_with(file)


def test_a_file_that_is_none_of_accelerates_is_refused(tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text("num_machines: [1\nno: yaml: at all")
    with pytest.raises(UserError, match="accelerate.yaml is not a configuration of Accelerate"):
        launch_with(file)


@pytest.mark.parametrize(("rank", "limit"), [(0, 1800.0), (1, None)])
def test_only_the_main_machine_of_several_looks_after_the_heartbeat_of_its_job(tmp_path, rank, limit):
    """The others hear none, and would stop a healthy job."""
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"num_machines: 2\nmachine_rank: {rank}\nmain_process_port: 29617\n")
    launch = replace(launch_with(file), stall_limit_minutes=30.0, time_limit_minutes=60.0)
    watch = launch.watch(tmp_path)
    assert watch.stall_limit_s == limit and watch.time_limit_s == 3600.0


@pytest.mark.parametrize("machines", [1, 2])
def test_several_machines_meet_at_the_port_that_the_file_names(tmp_path, machines):
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"num_machines: {machines}\nmachine_rank: 0\nmain_process_port: 29617\n")
    launch = launch_with(file)
    line = launch.command(tmp_path / "resolved.yaml")
    assert launch.machines == machines and ("--main_process_port" in line) == (machines == 1)
