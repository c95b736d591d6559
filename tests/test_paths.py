"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

import gtp_exp
from gtp_baselines.given import read_list
from gtp_exp.data.reading import expand
from gtp_exp.housekeeping.command import main as cache_command
from gtp_exp.paths import at_home

ROOT = Path(__file__).parents[1]
OF_NOBODY = "~no-user-of-this-name/x.jsonl"  # a shell leaves it as it is


def test_a_home_is_put_in_its_place_and_every_other_path_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home("~/a") == at_home(Path("~") / "a") == Path("/home/me/a")
    assert [str(at_home(path)) for path in ("a/~b", "/a", "")] == ["a/~b", "/a", "."]


@pytest.mark.parametrize(
    "read", [at_home, read_list, lambda path: expand([path]), gtp_exp.GradientStore.open, gtp_exp.results]
)
def test_the_home_of_nobody_is_told(read):
    with pytest.raises(gtp_exp.UserError, match=f"{OF_NOBODY} begins with the home of a user that is not"):
        read(OF_NOBODY)


def test_a_command_tells_of_the_home_of_nobody_in_a_line(capsys):
    assert cache_command(["list", "--outputs", OF_NOBODY]) == 2
    assert capsys.readouterr().err.startswith(f"gtp-exp-cache: {OF_NOBODY} begins with")


def test_every_path_is_read_so():
    files = [
        file for folder in ("gtp_exp", "baselines", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    ]
    assert [file.name for file in files if ".expanduser()" in file.read_text(encoding="utf-8")] == [
        "paths.py"
    ]
