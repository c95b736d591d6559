"""The built packages: the installed wheel beside a user's own `benchmarks` and `baselines`, and the sdist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("gtp_exp", "gtp_baselines", "gtp_benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the folder that the wheel is installed into; its dependencies are those of this interpreter."""
    site = tmp_path_factory.mktemp("installed") / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    return site


@pytest.fixture
def home(tmp_path):
    """Return a user's folder with packages of the names that this repository's folders have."""
    for name in ("benchmarks", "baselines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the user\\'s own {name}')\n")
    return tmp_path


def python(installed, home, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_in_another_folder(wheel, tmp_path):
    """Packages, YAML and the page's template are all in it."""
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = "import gtp_exp; print(gtp_exp.__file__)"
    assert str(unpacked) in python(unpacked, tmp_path, "-c", code)
    shown = python(unpacked, tmp_path, "-m", "gtp_exp", "--cfg", "job", "selector=less")
    assert "_target_: gtp_baselines.less.LESS" in shown
    assert (unpacked / "gtp_exp" / "leaderboard" / "page" / "page.html.j2").is_file()
    assert (unpacked / "gtp_benchmarks" / "skills" / "pool.py").is_file()


def test_the_users_own_packages_come_first_and_ours_are_the_installed_ones(installed, home):
    code = (
        f"import importlib\nfor name in {OURS}: print(importlib.import_module(name).__file__)\n"
        "for name in ('benchmarks', 'baselines'):\n"
        "    try: importlib.import_module(name)\n"
        "    except RuntimeError as error: print(error)"
    )
    lines = python(installed, home, "-c", code).splitlines()
    assert lines[:3] == [str(installed / name / "__init__.py") for name in OURS]
    assert lines[3:] == ["the user's own benchmarks", "the user's own baselines"]


def test_the_installed_command_line_runs_a_job_there(installed, home):
    assert "selector: " in python(installed, home, "-m", "gtp_exp", "--help")
    job = [
        "selector=random",
        "model=tiny",
        "dataset.rows=200",
        "until=selection",
        "tracking=none",
        "launch=cpu",
    ]
    python(installed, home, "-m", "gtp_exp", *job, "hydra.run.dir=outputs/runs/only")
    record = json.loads((home / "outputs" / "runs" / "only" / "results.json").read_text())
    assert record["state"] == "complete"
    assert record["config"]["selector"]["_target_"].startswith("gtp_baselines.")
    assert record["config"]["benchmark"]["_target_"].startswith("gtp_benchmarks.")


def test_the_benchmarks_commands_are_installed_too(installed, home):
    assert "usage" in python(installed, home, "-m", "gtp_benchmarks.performance.selection", "--help")


def test_the_sdist_holds_all_that_its_tests_and_its_readme_name(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:  # in a checkout; nothing that git keeps may be missing but the empty folders
        kept = {name for name in listed.stdout.splitlines() if not name.startswith("outputs/")}
        assert not {name for name in kept if (ROOT / name).is_file()} - names
    assert {"pyproject.toml", "README.md", "docs/architecture.md", "conf/config.yaml"} <= names
