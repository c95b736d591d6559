"""No sweeper is told the tests: which multiruns are refused, and in which words."""

from __future__ import annotations

import sys

import forked
import pytest
from omegaconf import OmegaConf
from test_command_line import ENVIRONMENT, ROOT, call

from gtp_exp.api.sweeps import TuneOnValidation, check_sweep
from gtp_exp.errors import UserError

OPTUNA = "hydra_plugins.gtp_optuna.optuna_sweeper.OptunaSweeper"
SWEEPER = """
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Best(BasicSweeper):
    def sweep(self, arguments):
        found = super().sweep(arguments)
        print("told", [job.return_value for jobs in found for job in jobs])
"""


def multirun(until="evaluation", sweeper=OPTUNA, task=(), **options):
    hydra = {"sweeper": {"_target_": sweeper, **options}, "overrides": {"task": list(task)}}
    return OmegaConf.create({"until": until, "hydra": hydra})


def test_a_search_on_validation_rows_and_any_grid_pass():
    check_sweep(multirun("validation", task=["until=validation", "seed=0,1"], direction="minimize"))
    check_sweep(multirun(sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper"))


@pytest.mark.parametrize(
    "config",
    [
        multirun("evaluation"),
        multirun("selection"),
        multirun("validation", task=["until=validation,evaluation"]),
        multirun("validation", params={"until": "choice(validation,evaluation)"}),
    ],
)
def test_a_search_that_would_see_a_test_is_refused_with_the_remedy(config, capsys):
    with pytest.raises(UserError, match="OptunaSweeper looks for settings.*give until=validation"):
        check_sweep(config)
    with pytest.raises(SystemExit) as ended:
        TuneOnValidation().on_multirun_start(config)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1


@pytest.mark.parametrize("direction", ["maximize", ["minimize", "maximize"]])
def test_a_search_for_the_largest_loss_is_refused(direction):
    with pytest.raises(UserError, match="hydra.sweeper.direction=minimize"):
        check_sweep(multirun("validation", direction=direction))


def test_a_sweeper_is_refused_on_the_command_line_or_told_the_validation_loss(tmp_path, monkeypatch):
    """One of the user's own: Hydra takes it by its class, as any other."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "best.py").write_text(SWEEPER)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}")
    job = ["-m", "selector=random", "budget=10pct", "hydra.sweeper._target_=hydra_plugins.best.Best"]
    refused = call(tmp_path, *job)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "Best looks for settings" in refused.stderr and not (tmp_path / "outputs").exists()
    done = call(tmp_path, *job, "until=validation")
    assert done.returncode == 0, done.stderr
    told = float(done.stdout.rpartition("told [")[2].partition("]")[0])
    assert f"nats per token {told:.3f}" in done.stdout
    # A run's own configuration, as the primary one, is held to the same.
    (run,) = tmp_path.glob("outputs/runs/*/0_*")
    again = ["--config-dir", str(run), "--config-name", "resolved", "-m", job[-1]]
    done = forked.run([sys.executable, "-m", "gtp_exp", *again, "until=evaluation"], ROOT, ENVIRONMENT)
    assert done.returncode == 2 and "Best looks for settings" in done.stderr, done.stderr
