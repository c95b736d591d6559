"""The search: Optuna is asked for trials, the launcher runs them, Optuna is told their values."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from optuna.trial import FrozenTrial, TrialState

from gtp_exp.errors import UserError, first_line
from gtp_exp.files import write_whole
from hydra_plugins.gtp_optuna._settings import Sampler, Settings
from hydra_plugins.gtp_optuna._space import as_overrides, as_values, divide

RESULTS = "optimization_results.yaml"
NAME = "search"
ERROR = "error"  # the attribute of a trial whose job failed; an interrupted trial has none
UNHEEDED = ("launch", "tracking")  # groups that change no value of a job


class Search:
    """One search in a sweep's folder, begun there or gone on with.

    What is tried next follows from the seed and the trials that have ended, so an interrupted search that
    goes on tries what an uninterrupted one would have tried (not with cmaes, which counts interrupted ones).
    """

    def __init__(self, settings: Settings, overrides: Sequence[Override], folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.fixed, self.space = divide(overrides)
        # What must be the same for values to be compared.
        texts = [(o.input_line or "").replace(" ", "") for o in overrides if _group(o) not in UNHEEDED]
        self.identity = " ".join([settings.direction.value, *sorted(texts)])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

    def run(self, launcher: Launcher) -> dict[str, Any]:
        """Run the trials that are missing and return what optimization_results.yaml says.

        Raises UserError for a folder that another search has or uses, HydraException where too many trials
        fail.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / f"{self.settings.storage or NAME}.lock", timeout=0):
                study = self._study()
                while (missing := self.settings.n_trials - len(_ended(study))) > 0:
                    self._batch(study, launcher, min(missing, self.settings.n_jobs))
                return self._report(study)
        except Timeout:
            raise UserError(
                f"another process searches in {self.folder}; give another hydra.sweep.dir"
            ) from None

    def _study(self) -> optuna.Study:
        """Return the folder's study, with what ran when it was interrupted put first in the queue."""
        storage = f"sqlite:///{self.folder / self.settings.storage}" if self.settings.storage else None
        create = partial(
            optuna.create_study,
            storage=storage,
            study_name=NAME,
            direction=self.settings.direction.value,
            load_if_exists=True,
        )
        study = create()
        if (there := study.user_attrs.get(NAME, self.identity)) != self.identity:
            if _ended(study):
                raise UserError(
                    f"{self.folder} holds the trials of '{there}', which are none of '{self.identity}'; give "
                    "another hydra.sweep.dir, or remove that folder"
                )
            assert storage is not None  # a study in memory is new
            optuna.delete_study(study_name=NAME, storage=storage)  # no job of it has ended
            study = create()
        study.set_user_attr(NAME, self.identity)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        return study

    def _batch(self, study: optuna.Study, launcher: Launcher, size: int) -> None:
        """Run some trials at once and tell the study how they ended."""
        study.sampler = self._sampler(len(_ended(study)))
        trials = [study.ask(self.space) for _ in range(size)]
        jobs = [[*self.fixed, *as_overrides(trial.params)] for trial in trials]
        for trial, job in zip(trials, launcher.launch(jobs, trials[0].number), strict=True):
            outcome = _outcome(job)
            if isinstance(outcome, str):
                trial.set_user_attr(ERROR, outcome)
                study.tell(trial, state=TrialState.FAIL)
                print(f"trial {trial.number} failed: {outcome}", flush=True)
            else:
                study.tell(trial, outcome)
                print(f"trial {trial.number}: {outcome:.6g}", flush=True)
        self._check_failures(study)
        if best := _best(study):
            write_whole(self.folder / RESULTS, [yaml.safe_dump(self._results(study, best), sort_keys=False)])

    def _sampler(self, ended: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of one batch, seeded by the trials before it."""
        seed = int(np.random.SeedSequence([self.settings.seed, ended]).generate_state(1)[0])
        if self.settings.sampler is Sampler.random:
            return optuna.samplers.RandomSampler(seed=seed)
        if self.settings.sampler is Sampler.cmaes:
            return optuna.samplers.CmaEsSampler(seed=seed)
        # Trials that run side by side count as bad ones, which keeps them apart from each other.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=self.settings.n_jobs > 1)

    def _check_failures(self, study: optuna.Study) -> None:
        failed = [trial for trial in _ended(study) if trial.state is TrialState.FAIL]
        allowed = self.settings.max_failure_rate * self.settings.n_trials
        if len(failed) > allowed:
            raise HydraException(
                f"{len(failed)} trials failed, and {math.floor(allowed)} of {self.settings.n_trials} may "
                f"(hydra.sweeper.max_failure_rate={self.settings.max_failure_rate}); the last: "
                f"{failed[-1].user_attrs[ERROR]}"
            )

    def _report(self, study: optuna.Study) -> dict[str, Any]:
        """Print the best trial and return the results."""
        best = _best(study)
        if best is None:
            raise HydraException(f"all {len(_ended(study))} trials in {self.folder} failed")
        results = self._results(study, best)
        print(
            f"best of {results['trials']} trials ({results['failed']} failed): {best.value:.6g} in trial "
            f"{best.number} with {shlex.join(as_overrides(best.params))}; {self.folder / RESULTS}",
            flush=True,
        )
        return results

    def _results(self, study: optuna.Study, best: FrozenTrial) -> dict[str, Any]:
        ended = _ended(study)
        return {
            "name": "optuna",
            "best_value": best.value,
            "best_params": as_values(best.params),
            "best_trial": best.number,  # the folder of its job begins with it
            "trials": len(ended),
            "failed": sum(trial.state is TrialState.FAIL for trial in ended),
        }


def _group(override: Override) -> str:
    return override.key_or_group.split(".")[0]


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials whose jobs ended, well or not, in their order."""
    return [t for t in study.get_trials() if t.state is TrialState.COMPLETE or ERROR in t.user_attrs]


def _best(study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial, or None while none is complete."""
    return study.best_trial if study.get_trials(states=(TrialState.COMPLETE,)) else None


def _outcome(job: JobReturn) -> float | str:
    """Return a job's value, or why there is none."""
    if job.status is not JobStatus.COMPLETED:
        return first_line(job._return_value)  # `return_value` would raise it
    try:
        value = float(job.return_value)
    except (TypeError, ValueError):
        return f"the job returned {job.return_value!r}, which is no number"
    return value if math.isfinite(value) else f"the job returned {value}"
