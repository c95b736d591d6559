"""Pages do what they say: commands of docs/stores.md run, those of docs/models.md and sweeps compose."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gtp_exp.errors import UserError
from gtp_exp.worker import assemble

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"gtp-exp": "gtp_exp", "gtp-exp-store": "gtp_exp.gradients.store_command"}


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)\n```", (ROOT / "docs" / page).read_text(), re.S)


@pytest.mark.slow
def test_the_commands_of_the_stores_page_run_as_they_stand(tmp_path):
    (code,) = blocks("stores.md", "python")
    (commands,) = blocks("stores.md", "bash")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "baselines", ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in commands.splitlines():
        name, *words = command.split()
        done = forked.run([sys.executable, "-m", MODULES[name], *words], tmp_path, environment)
        assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("outputs/runs/*/results.json")
    value = json.loads(record.read_text())
    assert value["selection"]["n_selected"] == 6
    assert set(value["stages"]) == {"gradients: pool", "gradients: target", "selection"}


def test_the_sweep_of_the_tracking_page_starts_jobs_that_compose():
    """The words are made by W&B's own code, from what a sweep's server would send."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    (text,) = blocks("tracking.md", "yaml")
    sweep = yaml.safe_load(text)
    drawn = {"selector": "less", "train.learning_rate": 0.00071, "budget": "5pct"}
    assert set(drawn) == set(sweep["parameters"])
    values = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in drawn.items()}})
    words: list[str] = []
    for part in utils.create_sweep_command(list(sweep["command"])):
        words += values[part[2:-1]] if part.startswith("${") else [part]
    assert words[0] == "gtp-exp" == sweep["program"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", words[1:]), resolve=True)
    experiment = assemble(config)  # type: ignore[arg-type]
    assert experiment.train.learning_rate == 0.00071
    assert experiment.settings.until.value == sweep["metric"]["name"].partition("/")[0] == "validation"


def test_the_commands_of_the_models_page_make_jobs(tmp_path, monkeypatch):
    """But for fp16, whose refusal is the point, as the page says."""
    page = (ROOT / "docs" / "models.md").read_text()
    lines = re.findall(r"`gtp-exp ([^`]*)`", page.partition("## What was not run")[2])
    assert len(lines) == 7
    monkeypatch.chdir(tmp_path)
    (file,) = blocks("scaling.md", "yaml")[1:]  # of FSDP
    (tmp_path / "accelerate.yaml").write_text(file)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for line in lines:
            words = line.removeprefix("-m ").split()
            swept = [(word.partition("=")[0], word.partition("=")[2].split(",")) for word in words]
            for values in itertools.product(*(options for _, options in swept)):
                given = [f"{key}={value}" for (key, _), value in zip(swept, values, strict=True)]
                config = OmegaConf.to_container(compose("config", given), resolve=True)
                if "model.precision=fp16" in given:
                    with pytest.raises(UserError, match="model.precision=fp16"):
                        assemble(config)  # type: ignore[arg-type]
                else:
                    assemble(config)  # type: ignore[arg-type]


def test_the_line_that_sends_offline_runs_finds_them(tmp_path):
    """`wandb sync` takes the folders that the line's pattern matches; in a dry run it sends nothing."""
    import wandb

    (line,) = blocks("tracking.md", "bash")
    folder = tmp_path / "outputs" / "runs" / "one"
    folder.mkdir(parents=True)
    settings = wandb.Settings(console="off", host="")
    run = wandb.init(project="p", dir=str(folder), mode="offline", settings=settings)
    run.log({"x": 1})
    run.finish()
    command = line.replace("wandb sync", f"{sys.executable} -m wandb sync --dry-run")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Would sync 1 run" in done.stdout + done.stderr, done.stderr
