"""The search by Optuna: what it tries, what it makes of failing jobs, and how it goes on."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna", reason="pip install '.[optuna]'")

from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from test_command_line import ENVIRONMENT

from gtp_exp.errors import UserError
from hydra_plugins.gtp_optuna._search import RESULTS, Search
from hydra_plugins.gtp_optuna._settings import Direction, Sampler, Settings
from hydra_plugins.gtp_optuna._space import as_values, divide

SPACE = ["x=interval(-10,10)", "n=range(1,6)", "fixed=7"]
APP = """
import sys, hydra
if "--without" in sys.argv:
    sys.argv.remove("--without")
    sys.modules["optuna"] = None
@hydra.main(version_base="1.3", config_path=None)
def app(config):
    if config.kind == "bad":
        raise ValueError("a bad kind")
    return (config.x - 3) ** 2
app()
"""


def parsed(*texts):
    return OverridesParser.create().parse_overrides(list(texts))


def parabola(x, n, fixed):
    """Its least value is 0.5, at x = 3 and n = 2."""
    assert fixed == 7
    return (x - 3) ** 2 + (n - 2) ** 2 + 0.5


class Jobs:
    """A launcher of functions: it keeps what was tried, and which jobs it was given at once."""

    def __init__(self, function=parabola, interrupted_at=math.inf):
        self.function, self.interrupted_at = function, interrupted_at
        self.tried, self.batches, self.interrupted = [], [], None

    def launch(self, job_overrides, initial_job_idx):
        self.batches.append(range(initial_job_idx, initial_job_idx + len(job_overrides)))
        return [self.job(as_values(dict(o.split("=", 1) for o in job))) for job in job_overrides]

    def job(self, values):
        if len(self.tried) >= self.interrupted_at:
            self.interrupted = values
            raise KeyboardInterrupt
        self.tried.append(values)
        done = JobReturn()
        try:
            done.return_value, done.status = self.function(**values), JobStatus.COMPLETED
        except ValueError as error:
            done.return_value, done.status = error, JobStatus.FAILED
        return done


def search(folder, jobs, *space, **settings):
    return Search(Settings(**settings), parsed(*(space or SPACE)), folder).run(jobs)


@pytest.mark.parametrize("sampler", [Sampler.tpe, Sampler.cmaes])
@pytest.mark.parametrize("direction", Direction)
def test_it_comes_nearer_to_a_known_optimum_than_chance(tmp_path, sampler, direction):
    sign = -1 if direction is Direction.maximize else 1
    jobs = Jobs(lambda **values: sign * parabola(**values))
    told = {"storage": None, "n_trials": 60, "sampler": sampler, "direction": direction}
    found = search(tmp_path, jobs, **told)
    values = [parabola(**tried) for tried in jobs.tried]
    assert found["best_value"] == sign * min(values) and found["trials"] == len(values) == 60
    assert found["best_params"].items() <= jobs.tried[found["best_trial"]].items()
    # At random, 60 of these land within 0.5 of x and on n about once in 3 searches.
    assert min(values) < 0.6
    assert sum(values[-20:]) < 0.5 * sum(values[:20])
    assert yaml.safe_load((tmp_path / RESULTS).read_text()) == found


def test_the_seed_decides_what_is_tried(tmp_path):
    tried = []
    for seed in (0, 0, 1):
        jobs = Jobs()
        search(tmp_path, jobs, storage=None, n_trials=14, seed=seed)
        tried.append(jobs.tried)
    assert tried[0] == tried[1] != tried[2]
    assert len({one["x"] for one in tried[0]}) == 14


@pytest.mark.parametrize(("sampler", "n_jobs"), [(Sampler.tpe, 3), (Sampler.random, 1)])
def test_an_interrupted_search_tries_what_an_uninterrupted_one_would_have(tmp_path, sampler, n_jobs):
    settings = {"n_trials": 13, "n_jobs": n_jobs, "sampler": sampler}
    whole, first, second, third = Jobs(), Jobs(interrupted_at=8), Jobs(interrupted_at=0), Jobs()
    expected = search(tmp_path / "whole", whole, **settings, storage=None)
    for jobs in (first, second):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, jobs, **settings)
    found = search(tmp_path, third, **settings)
    ended = 8 - 8 % n_jobs  # the values of a batch are told when all of it has ended
    assert first.tried[:ended] + third.tried == whole.tried and second.tried == []
    assert found["best_value"] == expected["best_value"] and found["trials"] == 13
    # No job writes into the folder of one that ended.
    numbers = [n for batch in (*first.batches[: ended // n_jobs], *third.batches) for n in batch]
    assert numbers == sorted(set(numbers)) and len(numbers) == 13
    again = Jobs()
    assert search(tmp_path, again, **settings) == found and again.tried == []
    search(tmp_path, again, **{**settings, "n_trials": 15})
    assert len(again.tried) == 2


def test_a_search_by_cmaes_goes_on(tmp_path):
    """It draws by the numbers of trials, and those of an interrupted one are not used again."""
    first, jobs = Jobs(interrupted_at=4), Jobs()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, first, n_trials=6, sampler=Sampler.cmaes)
    assert search(tmp_path, jobs, n_trials=6, sampler=Sampler.cmaes)["trials"] == 6 and len(jobs.tried) == 2
    assert jobs.tried[0] == first.interrupted


def test_jobs_are_launched_in_batches(tmp_path):
    jobs = Jobs()
    search(tmp_path, jobs, n_trials=7, n_jobs=3, storage=None)
    assert jobs.batches == [range(0, 3), range(3, 6), range(6, 7)]


def fails_above(limit):
    def job(x):
        if x > limit:
            raise ValueError(f"{x} is too much\nand more")
        return -x

    return job


def test_failing_trials_are_recorded_and_the_search_goes_on(tmp_path, capsys):
    jobs = Jobs(fails_above(3))
    found = search(tmp_path, jobs, "x=interval(0,4)", n_trials=12, max_failure_rate=1.0)
    failed = sum(one["x"] > 3 for one in jobs.tried)
    assert 0 < failed == found["failed"] and found["trials"] == 12
    assert found["best_value"] == -max(one["x"] for one in jobs.tried if one["x"] <= 3)
    assert capsys.readouterr().out.count(" is too much\n") == failed
    again = Jobs()  # failed trials have ended: they are not tried again
    assert search(tmp_path, again, "x=interval(0,4)", n_trials=12, max_failure_rate=1.0) == found


@pytest.mark.parametrize(("rate", "trials"), [(0.0, 1), (0.2, 3), (0.25, 3), (0.3, 4)])
def test_more_failures_than_their_share_end_the_search(tmp_path, rate, trials):
    jobs = Jobs(fails_above(-1))
    with pytest.raises(HydraException, match=f"max_failure_rate={rate}.* is too much$"):
        search(tmp_path, jobs, "x=interval(0,4)", n_trials=10, max_failure_rate=rate)
    assert len(jobs.tried) == trials and not (tmp_path / RESULTS).exists()
    with pytest.raises(HydraException, match="all 4 trials"):
        search(tmp_path, jobs, "x=interval(0,4)", n_trials=4, max_failure_rate=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "a word"])
def test_a_job_without_a_finite_value_is_a_failed_trial(tmp_path, value):
    jobs = Jobs(lambda x: value if len(jobs.tried) == 1 else 5)
    found = search(tmp_path, jobs, "x=interval(0,4)", n_trials=4, storage=None)
    assert found["failed"] == 1 and found["best_value"] == 5


def test_a_folder_holds_one_search(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Jobs(interrupted_at=0), "x=interval(0,5)")
    search(tmp_path, Jobs(), n_trials=2)  # of the other no job had ended
    heedless = ["launch.threads=4", "x=interval( -10, 10)", "fixed=7", "n=range(1,6)"]
    assert search(tmp_path, Jobs(), *heedless, n_trials=2)["trials"] == 2
    others = [["x=interval(-10,9)", *SPACE[1:]], [*SPACE[:2], "fixed=8"]]
    for space, settings in [*((o, {}) for o in others), (SPACE, {"direction": Direction.maximize})]:
        with pytest.raises(UserError, match=r"holds the trials of 'minimize fixed=7 .*hydra\.sweep\.dir"):
            search(tmp_path, Jobs(), *space, n_trials=3, **settings)
    with FileLock(tmp_path / "optuna.db.lock"):
        with pytest.raises(UserError, match="another process searches"):
            search(tmp_path, Jobs(), n_trials=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1,2)", FloatDistribution(1, 2)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("range(1,6)", IntDistribution(1, 5)),
        ("range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("range(8,1,-3)", IntDistribution(2, 8, step=3)),
        ("tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("range(0,1,0.3)", FloatDistribution(0, 0.9, step=0.3)),
        ("range(0.1,0.6,0.1)", FloatDistribution(0.1, 0.5, step=0.1)),
        ("range(1.0,0,-0.3)", FloatDistribution(0.1, 1, step=0.3)),
        ("range(0,1000000000000)", IntDistribution(0, 999999999999)),  # and no list of them
        ("choice(a,2,'x y',[1,b],a)", CategoricalDistribution(["a", "2", r"x\ y", "[1,b]"])),
        ("true,false", CategoricalDistribution(["True", "False"])),
    ],
)
def test_a_sweep_of_hydra_is_the_distribution_that_it_says(text, expected):
    fixed, space = divide(parsed("other=1", "+key=interval(0,1)", f"+key={text}"))
    assert space == {"+key": expected} and fixed == ["other=1"]


def test_a_choice_reaches_results_as_the_value_that_the_job_gets():
    assert as_values({"a": r"x\ y", "b": "[1,b]", "+c": "null", "d": 1e-05, "e": "1e-3"}) == {
        **{"a": "x y", "b": [1, "b"], "+c": None, "d": 1e-05, "e": 0.001}
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key=1", "nothing to search"),
        ("key=interval(2,1)", r"key=interval\(2,1\) begins above its end"),
        ("key=tag(log,interval(0,1))", "0.0 has no logarithm; begin above 0"),
        ("key=tag(log,range(1,9,2))", "a step of 1"),
        ("key=tag(log,range(0.5,9,2))", "whole numbers"),
        ("key=range(3,3)", "holds no value"),
        ("key=range(1,inf)", "has no end"),
        ("key=interval(0,inf)", "has no end"),
        ("key=interval(nan,1)", "has no end"),
        ("key=range(1,3,0)", "holds no value"),
        ("key=tag(log,choice(1,2))", "not for a choice"),
        ("key=tag(ln,interval(1,2))", "the tag 'ln' is unknown; the only one is log"),
    ],
)
def test_a_wrong_search_space_is_named_with_its_remedy(text, said):
    with pytest.raises(UserError, match=said):
        divide(parsed(text))


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_trials", 0), ("n_jobs", -1), ("seed", -1), ("max_failure_rate", 1.5), ("storage", "a/b.db")],
)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(UserError, match=f"hydra.sweeper.{name}={value} must"):
        Settings(**{name: value})


@pytest.fixture
def app(tmp_path):
    """Return a function that runs a Hydra application as a multirun with the sweeper."""
    (tmp_path / "app.py").write_text(APP)

    def run(*arguments):
        swept = ["-m", "hydra/sweeper=optuna", "hydra.sweep.dir=swept", *arguments]
        line = [sys.executable, "app.py", *swept]
        return subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)

    return run


def test_hydra_finds_the_sweeper_and_its_settings(app, tmp_path):
    space = ["+hydra.sweeper.params={+x: 'interval(0, 6)', +kind: 'choice(good, bad)'}", "+kind=good,bad"]
    done = app(*space, "hydra.sweeper.n_trials=6", "hydra.sweeper.max_failure_rate=1")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "swept" / RESULTS).read_text())
    assert found["best_params"]["+kind"] == "good" and found["trials"] == 6
    assert found["best_value"] == (found["best_params"]["+x"] - 3) ** 2
    assert done.stdout.count("failed: a bad kind") == found["failed"]
    assert {path.name for path in Path(tmp_path / "swept").iterdir() if path.is_dir()} == set("012345")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["hydra.sweeper.sampler=grid"], 1, "'grid', expected one of [tpe, random, cmaes]"),
        (["hydra.sweeper.n_trails=3"], 1, "'n_trails' not in 'Settings'"),
        (["hydra.sweeper.n_trials=0"], 2, "error: hydra.sweeper.n_trials=0 must be 1 or more\n"),
        (
            ["--without"],
            2,
            "error: hydra/sweeper=optuna needs the package optuna, which is not installed: pip install",
        ),
    ],
)
def test_a_mistake_is_told_in_words(app, arguments, status, said):
    done = app("+x=interval(0,6)", "+kind=good", *arguments)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr, done.stderr
