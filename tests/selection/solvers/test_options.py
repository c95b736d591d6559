"""A solver is an option of a group inside the selector's, and its class has that option's values."""

from __future__ import annotations

import pytest
from options import CONF, whole
from problems import shipped

from gtp_exp.config import build
from gtp_exp.errors import UserError
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.elastic_net import ElasticNet
from gtp_exp.selection.solvers.greedy import Greedy
from gtp_exp.selection.solvers.omp import OMP, BlockOMP

SOLVERS = {solver.name: solver for solver in (CoSaMP(), OMP(), BlockOMP(), ElasticNet(), Greedy())}


def composed(*overrides):
    return build(whole(*overrides)["selector"], "selector")


def test_every_option_is_listed():
    assert {path.stem for path in (CONF / "selector" / "solver").glob("*.yaml")} == set(SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_option_is_its_class_without_arguments(name):
    assert composed("selector=gtp", f"selector/solver={name}").solver == SOLVERS[name]


def test_a_variant_of_gtp_takes_another_solver_and_its_options():
    assert composed("selector=gtp_omp").solver == OMP()
    chosen = composed("selector=gtp_omp", "selector/solver=block_omp", "selector.solver.steps=7")
    assert chosen.solver == BlockOMP(steps=7)
    assert composed("selector=gtp", "selector.solver.candidates=3").solver == CoSaMP(candidates=3.0)


def test_an_option_that_the_solver_does_not_read_is_refused_by_name():
    with pytest.raises(UserError, match=r"selector\.solver\.steps"):
        build({**shipped(), "solver": {**shipped()["solver"], "steps": 5}}, "selector")


@pytest.mark.parametrize("value", ["omp", None, {"candidates": 2.0}])
def test_what_names_no_class_is_refused_with_the_remedy(value):
    with pytest.raises(UserError, match="'selector.solver'.*selector/solver=OPTION"):
        build({**shipped(), "solver": value}, "selector")
