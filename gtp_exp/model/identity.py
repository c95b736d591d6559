"""Tell what a model is by its content: what a stage's key says of the model that it reads."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from gtp_exp.files import MANIFEST, folder_digest, read_json, sha256_file

# Files that no model is loaded from: what is written for people, weights for other libraries, and our own.
_NO_PART = {".md", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".lock", ".png", ".jpg", ".svg", ".pdf"}
_NO_PART_NAMES = {"LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "__pycache__", MANIFEST}


def weights_fingerprint(location: str, architecture: Any, revision: str | None) -> str:
    """Return what names a model: a hash of a local folder's files, or a hub model's id and commit.

    architecture: the model's transformers configuration, which knows the commit it was read from. Of a folder
    every file counts that can change what the model or its tokenizer does: weights, configurations, code,
    vocabularies, merges. Of an adapter's folder the base model counts, too, where it is a folder.
    """
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}@{getattr(architecture, '_commit_hash', None) or revision or 'main'}"
    digest = folder_digest(folder, _changes_the_model)
    base = (read_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
    if isinstance(base, str) and Path(base).is_dir() and Path(base).resolve() != folder.resolve():
        digest = hashlib.sha256(
            f"{digest} {weights_fingerprint(base, architecture, None)}".encode()
        ).hexdigest()
    return digest[:24]


def _changes_the_model(path: Path) -> bool:
    """Say whether a file or folder of a model's folder can change what the model does."""
    return not (path.name.startswith(".") or path.name in _NO_PART_NAMES or path.suffix.lower() in _NO_PART)


def own_code(location: str, architecture: Any, tokenizer: Any, revision: str | None) -> str:
    """Return a hash of the code that a model brings along; "" for one that transformers knows.

    It may come from another place than the weights: a configuration can name the code of another repository.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    classes = [type(architecture), type(tokenizer)]
    named = (getattr(architecture, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if named is not None:
        classes.append(get_class_from_dynamic_module(named, location, revision=revision))
    files = {inspect.getfile(c) for c in classes if c.__module__.partition(".")[0] == "transformers_modules"}
    code = {path for file in files for path in Path(file).parent.glob("*.py")}
    sums = sorted(f"{path.name} {sha256_file(path)}" for path in code)
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:24] if sums else ""
