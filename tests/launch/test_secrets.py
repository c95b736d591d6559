"""Secrets that find their way into a configuration stop the job before anything is written, unechoed."""

from __future__ import annotations

import shutil

import forked
import pytest
from test_command_line import ENVIRONMENT, ROOT, command

from gtp_exp.errors import UserError
from gtp_exp.launch.secrets import check_no_secrets

PLANTED = "9f8e7d6c5b4a39281706"


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "CLIENT_SECRETS",
        "MY_PASSWORD",
        "DB_PASSWORD2",
        "PGPASSWORD",
        "OPENAI_APIKEY",
        "X_CREDENTIALS",
    ],
)
def test_the_value_of_a_secret_variable_is_refused_by_key_and_not_shown(monkeypatch, name):
    monkeypatch.setenv(name, PLANTED)
    with pytest.raises(UserError) as caught:
        check_no_secrets({"tracking": {"project": ["a", f"x{PLANTED}y"]}})
    assert f"tracking.project[1] holds the value of the environment variable {name}" in str(caught.value)
    assert PLANTED not in str(caught.value)


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "a1" * 17,
        "sk-proj-" + "b2" * 20,
        "ghp_" + "c3" * 18,
        "github_pat_" + "d4_" * 20,
        "glpat-" + "e5-" * 7,
        "AKIA" + "D4" * 8,
    ],
)
def test_what_is_shaped_like_a_token_is_refused(token):
    with pytest.raises(UserError, match="model.name_or_path holds what looks like an access token"):
        check_no_secrets({"model": {"name_or_path": f"https://user:{token}@host/model"}})


def test_ordinary_values_pass(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a value that is long")
    monkeypatch.setenv("PUBLIC_NAME", PLANTED)
    check_no_secrets(
        {"a": "none", "b": f"{PLANTED} a value that is long", "c": [1, None, 2.5], "d": "sk-short"}
    )


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_nothing_is_written_with_a_secret_in_it(tmp_path, multirun):
    environment = {**ENVIRONMENT, "HF_TOKEN": PLANTED, "WANDB_API_KEY": "0" * 40}
    for override in (f"tracking.project={PLANTED}", "tracking.project=${oc.env:HF_TOKEN}"):
        done = forked.run(command(*multirun, "tracking=wandb", override), tmp_path, environment)
        assert done.returncode != 0 and PLANTED not in done.stdout + done.stderr
        assert "HF_TOKEN" in done.stderr
    for path in tmp_path.rglob("*"):
        assert PLANTED not in str(path) and (path.is_dir() or PLANTED not in path.read_text(errors="replace"))


def test_a_secret_among_hydras_own_settings_is_refused_and_not_left(tmp_path):
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "tests" / "conf", conf)
    (conf / "experiment").mkdir()
    preset = f"# @package _global_\nhydra:\n  job:\n    env_set:\n      ACCESS: {'hf_' + 'a1' * 17}\n"
    (conf / "experiment" / "leaky.yaml").write_text(preset)
    line = [str(conf) if part.endswith("tests/conf") else part for part in command("-m", "experiment=leaky")]
    done = forked.run(line, tmp_path, ENVIRONMENT)
    assert done.returncode != 0 and "hydra.job.env_set.ACCESS holds what looks like" in done.stderr
    for path in tmp_path.glob("outputs/**/*"):
        assert path.is_dir() or "hf_a1" not in path.read_text(errors="replace")
