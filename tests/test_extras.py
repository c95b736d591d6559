"""What one option alone needs is an extra: without it the job ends in one line before it has begun."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_command_line import ENVIRONMENT, command
from test_house import FILES, ROOT, imported_names

from gtp_baselines.bm25 import BM25
from gtp_baselines.dedup_random import DedupRandom
from gtp_baselines.sentence_knn import SentenceKNN
from gtp_benchmarks.performance import recovery
from gtp_exp.api.start import check_arguments
from gtp_exp.errors import UserError, check_installed
from gtp_exp.tracking.tensorboard import TensorBoardTracking
from gtp_exp.worker import check_packages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# By what is written on the command line: the module that it needs, the extra that brings it, and its choice.
OPTIONS = {
    "selector=bm25": ("bm25s", "bm25", BM25),
    "selector=dedup_random": ("datasketch", "dedup", DedupRandom),
    "selector=sentence_knn": ("sentence_transformers", "sentence", SentenceKNN),
    "tracking=tensorboard": ("tensorboard", "tensorboard", TensorBoardTracking),
    "hydra/sweeper=optuna": ("optuna", "optuna", lambda: check_arguments(["-m", "hydra/sweeper=optuna"])),
    "model.quantization=nf4": (
        "bitsandbytes",
        "quantization",
        lambda: check_packages({"model": {"quantization": "nf4"}}),
    ),
    **{
        f"hydra/launcher={name}": (
            f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher",
            "sweep",
            lambda name=name: check_arguments(["-m", f"hydra/launcher={name}"]),
        )
        for name in ("joblib", "submitit_local", "submitit_slurm")
    },
}
TOOLS = {"dev", "docs", "plots", "notebook"}  # which no option of a job needs
# Its tests are left out without it: with it every process that imports PEFT starts a second later.
HEAVY = {"quantization"}
TEXTS = {".md", ".py", ".yaml", ".yml", ".toml", ".cff", ".j2", ".txt", ""}


def told(option):
    """The line by which a missing package is told."""
    module, extra, _ = OPTIONS[option]
    package = module.split(".")[-1].replace("_", "-")
    ways = f"pip install '.[{extra}]' in a clone of gtp-exp"
    return f"{option} needs the package {package}, which is not installed: {ways}"


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_without_its_package_names_the_extra(option, monkeypatch):
    module, extra, choose = OPTIONS[option]
    if extra not in HEAVY:
        choose()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as refused:
        choose()
    assert str(refused.value) == told(option)


def test_a_plugin_is_missing_where_there_are_no_plugins_at_all(monkeypatch):
    with pytest.raises(UserError, match="needs the package one, .*'.\\[an-extra\\]'"):
        check_installed("what=ever", "no_such_package.one", extra="an-extra")


def without(folder: Path, *modules: str) -> dict[str, str]:
    """The environment of a Python that has none of these modules."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({modules}))\n")
    return {**ENVIRONMENT, "PYTHONPATH": f"{folder}:{ENVIRONMENT['PYTHONPATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--estimate",)])
def test_a_job_says_so_before_it_has_begun(how, tmp_path):
    option = "selector=bm25"
    environment = without(tmp_path, OPTIONS[option][0])
    line = command(option, *how)
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and told(option) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "outputs" / "cache").exists()
    if not how:
        assert done.stderr.count("\n") == 1


def test_a_multirun_without_its_launcher_says_so_in_one_line(tmp_path):
    option = "hydra/launcher=submitit_slurm"
    line = command("-m", "seed=0,1", option)
    environment = without(tmp_path, OPTIONS[option][0])
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {told(option)}\n"
    assert not (tmp_path / "outputs").exists()


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as ended:
        recovery.main(["--picture", "curves.svg"])
    assert ended.value.code == 2
    assert "--picture needs the package matplotlib, which is not installed" in capsys.readouterr().err


def test_every_extra_is_that_of_an_option_and_the_tests_have_them_all():
    extras = PROJECT["optional-dependencies"]
    assert {extra for _, extra, _ in OPTIONS.values()} == set(extras) - TOOLS
    (ours,) = [line for line in extras["dev"] if line.startswith("gtp-exp[")]
    assert set(extras) - TOOLS - HEAVY | {"notebook"} == set(
        ours.removeprefix("gtp-exp[").rstrip("]").split(",")
    )


def test_no_module_imports_what_only_an_extra_brings():
    """On being imported: a selector that is not chosen costs nothing and fails nowhere."""
    optional = {module for module, _, _ in OPTIONS.values()} | {"matplotlib"}
    for module in FILES:
        if module.startswith("hydra_plugins.gtp_optuna._"):
            continue  # imported once Optuna is known to be here
        names = imported_names(module, in_functions=False)
        assert not {n for n in names for m in optional if f"{n}.".startswith(f"{m}.")}, module


def test_nothing_tells_people_to_install_what_no_index_has():
    """gtp-exp is installed from a clone: the name is on no index, and could be taken there by anyone."""
    advice = re.compile(r"(install|add|uvx|pipx run)( -\S+)* ['\"]?gtp[-_]exp\b|gtp[-_]exp\[")
    assert advice.search("pip install -U 'gtp-exp[sweep]'") and advice.search("pipx install gtp-exp")
    assert not advice.search("pip install '.[bm25]' in a clone of it")
    folders = ("gtp_exp", "baselines", "benchmarks", "conf", "docs", ".github", ".ci")
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    files = [path for path in paths if path.suffix in TEXTS and path.is_file()]
    assert len(files) > 300
    for path in files:
        text = path.read_text(errors="replace")
        if path.name == "pyproject.toml":  # where the extra for development takes in the others
            text = text.replace('"gtp-exp[', "")
        assert not (found := advice.search(text)), f"{path.relative_to(ROOT)}: {found[0]}"
