"""What SECURITY.md promises, looked for in the code and in all that a run leaves behind."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from test_command_line import ENVIRONMENT, command

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for part in ("gtp_exp", "baselines", "benchmarks") for p in (ROOT / part).rglob("*.py"))
UNPICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen"}
# Calls that unpickle unless they are told not to.
TOLD = {
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "numpy.load": ("allow_pickle", "False"),
}
PLANTED = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_PlantedPlantedPlantedPlantedPlant",
    "OPENAI_API_KEY": "sk-planted-11112222333344445555",
    "AWS_SECRET_ACCESS_KEY": "planted/Secret+Access/Key0000000000000000",
    "DATABASE_PASSWORD": "planted-Pa55word",
    "MY_SERVICE_TOKEN": "planted-service-token",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_code_unpickles_evaluates_or_asks_a_shell(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = {module} if module else {alias.name for alias in node.names}
            assert not {str(name).split(".")[0] for name in names} & UNPICKLE, (path, node.lineno)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN_CALLS, (path, node.lineno)
            given_words = {(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords}
            assert name not in TOLD or TOLD[name] in given_words, (path, node.lineno)
            for keyword in node.keywords:
                given = ast.unparse(keyword.value)
                assert (keyword.arg, given) not in {
                    ("shell", "True"),
                    ("trust_remote_code", "True"),
                    ("use_safetensors", "False"),
                    ("weights_only", "False"),
                    ("allow_pickle", "True"),
                    ("confirm_run_unsafe_code", "True"),
                }, (path, node.lineno)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """All that a tracked run and its leaderboard leave, with secrets in the environment."""
    folder = tmp_path_factory.mktemp("planted")
    environment = {**ENVIRONMENT, **PLANTED, "WANDB_MODE": "offline"}
    job = command("selector=gtp", "budget=10pct", "tracking=wandb")
    done = forked.run(job, folder, environment)
    assert done.returncode == 0, done.stderr
    main = "from gtp_exp.leaderboard import main; main()"
    board = [sys.executable, "-c", main, "outputs/runs", "--out", "outputs/leaderboard"]
    shown = subprocess.run(board, cwd=folder, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files["terminal"] = (done.stdout + done.stderr + shown.stdout + shown.stderr).encode()
    return folder, files


def test_no_secret_of_the_environment_is_written_or_printed(left):
    _, files = left
    assert any(name.endswith(".wandb") for name in files) and "outputs/leaderboard/index.html" in files
    for name, secret in PLANTED.items():
        assert not [file for file, content in files.items() if secret.encode() in content], name


def test_no_folder_of_this_machine_is_written(left):
    folder, files = left
    written = {k: v for k, v in files.items() if k != "terminal"}  # where the page's address is printed
    # An adapter of a local base names it by its whole path, or no other program would find it.
    for name in [name for name in written if name.endswith("/adapter_config.json")]:
        settings = json.loads(written[name])
        base = Path(settings.pop("base_model_name_or_path"))
        assert name.startswith(("outputs/cache/finetune/", "outputs/runs/")) and base.is_absolute()
        written[name] = json.dumps(settings).encode()
    for place in (str(folder), str(ROOT), str(Path.home())):
        assert not [name for name, content in written.items() if place.encode() in content], place


def test_what_a_run_keeps_is_text_or_safetensors(left):
    _, files = left
    kinds = {Path(name).suffix for name in files if "/wandb/" not in name} - {""}
    assert kinds <= {
        *(".json", ".jsonl", ".yaml", ".log", ".md", ".csv", ".html", ".lock"),
        *(".safetensors", ".parquet"),
        ".jinja",
    }
    for name, content in files.items():
        if name.endswith(".json") and "/wandb/" not in name:
            json.loads(content)
