"""Write a run's tuned model as a folder of its own, which is loaded, moved and published as it is.

<run>/model/    adapter_model.safetensors and adapter_config.json, or the whole weights and config.json;
                the tokenizer with the chat template that was trained with; generation_config.json, so
                that generation stops; README.md, the model card; made_from.json, the stage it came from
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gtp_exp.export.card import Kind, model_card
from gtp_exp.files import (
    MANIFEST,
    PART,
    first_damage,
    read_json,
    read_sealed,
    write_json,
    write_sealed,
    write_whole,
)
from gtp_exp.model.loading import Model
from gtp_exp.model.stopping import generation_settings
from gtp_exp.records.record import MADE_FROM, MODEL_FOLDER, RunRecord

ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
_TEMPLATES = "additional_chat_templates"  # folder of a tokenizer's chat templates beside the default one
_VERSION = 1  # raise it when the folder's layout changes: folders of earlier jobs are then written again


def write_product(run: Path, model: Model, tuned: Path, key: str, record: RunRecord) -> Path:
    """Write the tuned model of a run to its folder `model`, and return that folder.

    model: what was tuned; tuned: the folder that training has written, whose weights are linked, not copied,
    where both lie on one file system; key: of the stage that trained. The weights of an earlier job of the
    same key stay as they are.
    """
    folder = run / MODEL_FOLDER
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    if is_whole(folder, key):
        _describe(folder, model, tuned, record)
        return folder
    part.mkdir(parents=True)
    for file in files_of(tuned):
        place(file, part / file.relative_to(tuned))
    _describe(part, model, tuned, record)
    sizes = {file.name: file.stat().st_size for file in sorted(part.glob("*.safetensors"))}
    sealed = {"version": _VERSION, "finetune": key, "weights": sizes, "sha256": _recorded(tuned, sizes)}
    write_sealed(part / MADE_FROM, sealed)
    _remove(folder)  # of another job in this folder
    os.replace(part, folder)
    return folder


def remove_product(run: Path) -> None:
    """Remove the tuned model that an earlier job left in a run's folder."""
    folder = run / MODEL_FOLDER
    if not folder.exists() or (folder / MADE_FROM).exists():
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a model's folder, where there is one, under another name: half removed, without made_from.json,
    it would pass for one that no run has left, and stop the next job."""
    aside = folder.with_name(f"{folder.name}.removed{PART}")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed job has left
    if folder.exists():
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def is_whole(folder: Path, key: str) -> bool:
    """Say whether a folder holds every weight of the model that the stage of this key has trained."""
    about = read_sealed(folder / MADE_FROM)
    if about is None or (about["version"], about["finetune"]) != (_VERSION, key):
        return False
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
    return sizes == about["weights"]


def is_undamaged(folder: Path) -> bool:
    """Say whether the weights in a folder are those that were written there; True where nothing tells."""
    about = read_sealed(folder / MADE_FROM) or {}
    return not first_damage(folder, about.get("sha256") or {})


def _recorded(tuned: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the checksums of the weights as the cache entry of the training has them, by file."""
    files = (read_sealed(tuned.parent / MANIFEST) or {}).get("files", {})
    inside = {name: f"{tuned.name}/{name}" for name in names}
    return {name: files[path] for name, path in inside.items() if path in files}


def files_of(folder: Path) -> list[Path]:
    """Return the files of a model's folder, in which other programs may have left folders of their own."""
    return sorted(filter(Path.is_file, [*folder.iterdir(), *(folder / _TEMPLATES).glob("*")]))


def place(file: Path, to: Path) -> None:
    """Put a file of the cache into another folder: weights as a hard link where the file system has them,
    else as a copy, so that nothing that is changed there changes the cache."""
    to.parent.mkdir(exist_ok=True)
    if file.suffix == ".safetensors":
        try:
            os.link(file, to)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(file, to)


def _describe(folder: Path, model: Model, tuned: Path, record: RunRecord) -> None:
    """Write the small files: those that say what the base is, how to generate, and how the model was made."""
    adapter: dict[str, Any] | None = read_json(tuned / ADAPTER_CONFIG)
    if adapter is not None:
        write_json(folder / ADAPTER_CONFIG, {**adapter, **_base(model)})
    settings = generation_settings(model.location, model.config.revision, model.tokenizer)
    write_json(folder / GENERATION_CONFIG, settings)
    kind = Kind.WEIGHTS if adapter is None else Kind.ADAPTER
    write_whole(folder / CARD, [model_card(record, model.config, kind)])


def _base(model: Model) -> dict[str, Any]:
    """Return where the base is found: a hub model by id and commit, a folder by its whole path, so that it is
    found from every folder of this machine."""
    if Path(model.location).is_dir():
        return {"base_model_name_or_path": str(Path(model.location).resolve()), "revision": None}
    _, _, commit = str(model.identity["weights"]).rpartition("@")
    return {"base_model_name_or_path": model.location, "revision": commit}
