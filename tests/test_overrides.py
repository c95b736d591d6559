"""What is said of an override whose key does not exist."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from gtp_exp.api.start import conf_dir


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=1", "^sed is unknown; did you mean seed[?] the job has model, dataset"),
        ("foo=1", "^foo is unknown; the job has model"),
        ("selecter=gtp", "^selecter is unknown; did you mean selector[?]"),
        (
            "selector.rigde=1",
            "^selector.rigde is unknown; did you mean selector.ridge[?] .*folds",
        ),
        ("selector.solver.nme=3", "^selector.solver.nme is unknown; selector.solver has [a-z]"),
        ("benchmark.target=a", "^benchmark.target is unknown; it is a key of benchmark=jsonl; benchmark has"),
        (
            "selector.solver.exchanges=1",
            "is unknown; it is a key of selector/solver=greedy; selector.solver has",
        ),
        ("benchmark.tests=a", "^benchmark.tests is unknown; did you mean benchmark.test_rows[?]"),
        (
            "benchmark.names=[a]",
            "^benchmark.names is unknown; it is a key of benchmark=bbh, .*; benchmark has skills, in_domain",
        ),
        ("dataset.file=a", "^dataset.file is unknown; dataset has"),
        ("selector.ridge.x=3", "^selector.ridge.x is unknown; selector.ridge is 0.3$"),
        ("tests.mmlu.x=3", r"^tests.mmlu is unknown; tests is \[\]$"),
        ("~selector.foo", "^Could not delete"),
        ("+selector.ridge=2", "^Could not append to config. An item is already at"),
    ],
)
def test_the_key_that_was_meant_is_told(override, words):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        with pytest.raises(ConfigCompositionException, match=words) as caught:
            compose("config", [override])
        assert "To append" not in str(caught.value)


def test_other_overrides_are_applied_in_their_order():
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", ["+selector.note=1", "selector.note=2", "~train.epochs", "seed=3"])
    assert (config.selector.note, config.seed) == (2, 3) and "epochs" not in config.train


def test_a_value_is_replaced_that_cannot_be_looked_up_yet():
    """The folder of several jobs is named by the experiment, which Hydra fills in later."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose(
            "config",
            ["experiment=headline", "hydra.sweep.dir=here"],
            return_hydra_config=True,
        )
    assert config.hydra.sweep.dir == "here"
