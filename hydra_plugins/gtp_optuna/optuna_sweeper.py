"""The class that Hydra calls for a search. Optuna is imported on use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from gtp_exp.errors import UserError, check_installed
from hydra_plugins.gtp_optuna._settings import Settings


class OptunaSweeper(Sweeper):
    """Runs a multirun whose jobs Optuna chooses by the values of earlier ones."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives before the sweep."""
        self.folder = Path(config.hydra.sweep.dir)
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> dict[str, Any]:
        """Run the search, and return what optimization_results.yaml says.

        A mistake in the settings ends the process with one line and status 2.
        """
        try:
            return self._search(Settings(**self.settings), arguments)
        except UserError as error:  # of which Hydra would show a traceback
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def _search(self, settings: Settings, arguments: Sequence[str]) -> dict[str, Any]:
        check_installed("hydra/sweeper=optuna", "optuna", "optuna")
        from hydra_plugins.gtp_optuna import _search

        texts = [*(f"{key}={value}" for key, value in settings.params.items()), *arguments]
        assert self.launcher is not None  # set up by Hydra before
        return _search.Search(settings, self.parser.parse_overrides(texts), self.folder).run(self.launcher)
