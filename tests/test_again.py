"""A run's resolved.yaml is a job like any other."""

from __future__ import annotations

from omegaconf import OmegaConf

from gtp_exp.api.again import with_earlier_options


def test_the_options_are_those_of_then_but_for_those_that_are_chosen_now():
    earlier = {"seed": 1, "job": {"name": "run", "names": {"selector": "gtp", "model": "tiny"}}}
    config, names = with_earlier_options(OmegaConf.create(earlier), {"selector": "random"})
    assert names == {"selector": "random", "model": "tiny"}
    assert OmegaConf.to_container(config) == {"seed": 1}


def test_another_job_comes_back_as_it_is():
    job = OmegaConf.create({"seed": 1})
    config, names = with_earlier_options(job, {"selector": "gtp"})
    assert config is job and names == {"selector": "gtp"}
