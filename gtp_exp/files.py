"""Write files and folders that are whole or absent: aside first, with checksums, then moved to their place.

    NAME.part        what is being written, or what a killed process left
    NAME             appears by rename, once everything of it is on the disk
    manifest.json    in a folder: the checksum of every file; in it and in every other sealed JSON file stands
                     the checksum of its own entries

`SealedFolder` and `SealedFile` check these whenever they are read: damage is noticed where it matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_exp.launch.heartbeat import beat

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PART = ".part"  # ends the name of what is being written
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # other errors may pass: no damage
_OWN = "checksum"  # the entry of a sealed file that holds the checksum of the others


@dataclass(frozen=True)
class SealedFolder:
    """Appears under its name only when all of its files are there, with a manifest of their checksums.

    The folder is filled under `part`, and may be left there half filled for a later process to go on with.
    That no two processes fill it at once is left to the caller.
    """

    path: Path

    @property
    def part(self) -> Path:
        """Return the folder's place while it is being filled."""
        return self.path.with_name(self.path.name + PART)

    def begin(self, *, resume: bool) -> Path:
        """Return `part`, there to be filled; with `resume`, with the whole files that an earlier run left."""
        if not resume or self.part.is_symlink() or not self.part.is_dir():
            remove(self.part)
        self.part.mkdir(exist_ok=True)
        # Files that were being written when a run was stopped; nobody goes on with those.
        for file in (self.part / MANIFEST, *self.part.rglob("*" + PART)):
            file.unlink(missing_ok=True)
        return self.part

    def finish(self, about: Mapping[str, Any] | None = None) -> None:
        """Seal `part` and move it to its place. about: entries of the manifest beside the checksums."""
        seal_folder(self.part, about)
        os.replace(self.part, self.path)

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the whole folder, or None. Delete a damaged folder, with a warning."""
        if not os.path.lexists(self.path):
            return None
        manifest, damage = checked_manifest(self.path)
        if not damage:
            return manifest
        log.warning("%s: damaged cache entry (%s); making it again", self.path, damage)
        remove(self.path)
        return None


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, where there is one; what a link leads to stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Give a new folder to fill, of a name that nobody has; afterwards move it to `path`, which is not there
    yet, or remove it on errors.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def find_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a name in a folder and below it, in order; linked folders are followed."""
    return sorted(here / name for here, _, files in _walk(folder) if name in files)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield every folder from a folder down, linked ones too, each once, with its folders and files; folders
    that are taken out of the list are not walked through.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = Path(parent)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        yield here, folders, files


def seal_folder(folder: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a folder: entries about it, and the checksums of the files that are in it now."""
    files = checksums(folder)
    files.pop(MANIFEST, None)  # of an earlier content, where a folder is filled anew
    write_sealed(folder / MANIFEST, {**(about or {}), "files": files})


def checked_manifest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest of a folder, and what is damaged in the folder: empty when nothing is."""
    manifest = read_sealed(folder / MANIFEST)
    if manifest is None:
        return None, f"{MANIFEST} is missing or damaged"
    return manifest, first_damage(folder, manifest["files"])


@dataclass(frozen=True)
class SealedFile:
    """Appears under its name only when the file is whole; its checksum is in a JSON file beside it."""

    path: Path

    @property
    def _seal(self) -> Path:
        return self.path.with_suffix(".json")

    def write(self, save: Callable[[Path], object]) -> None:
        """Write the file and its checksum. save: writes the content to the path that it is given."""
        with written_aside(self.path) as partial:
            save(partial)
            checksum = sha256_file(partial)
        write_sealed(self._seal, {"sha256": checksum})

    def checksum(self) -> str | None:
        """Return the recorded SHA-256, without a look at the file; None when the record is damaged."""
        sealed = read_sealed(self._seal)
        return None if sealed is None else sealed.get("sha256")

    def intact(self) -> bool:
        """Say whether the file is there and as it was written; warn of one that is not as it was written."""
        if not (self.path.is_file() and self._seal.is_file()):
            return False
        if self.checksum() == sha256_file(self.path):
            return True
        log.warning("%s is damaged, or its checksum %s; it is computed again", self.path, self._seal.name)
        return False


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a path to write to; afterwards bring it to the disk and move it to `path`, or remove it on errors.

    A reader of `path` sees the old or the new file, each whole.
    """
    partial = path.with_name(path.name + PART)  # beside it: os.replace is atomic within one file system
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            beat()
    return digest.hexdigest()


def checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below the directory, by its relative name."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def folder_digest(folder: Path, matters: Callable[[Path], bool]) -> str:
    """Return the SHA-256 (hex) of the files below a folder, their names included; linked folders are
    followed, each once.

    matters: whether a file or folder, given by its path below `folder`, is part of the content.
    """
    digest = hashlib.sha256()
    for here, folders, files in _walk(folder):
        below = here.relative_to(folder)
        folders[:] = sorted(name for name in folders if matters(below / name))
        for name in sorted(files):
            if matters(below / name) and (here / name).is_file():  # a link may lead nowhere
                digest.update(f"{(below / name).as_posix()} {sha256_file(here / name)}\n".encode())
    return digest.hexdigest()


def first_damage(directory: Path, recorded: Mapping[str, str]) -> str:
    """Name the first file that is not as recorded, and say why; return "" when every one is."""
    for name, expected in recorded.items():
        try:
            checksum = sha256_file(directory / name)
        except _ABSENT:
            return f"{name} is missing"
        if checksum != expected:
            return f"{name} does not match its checksum"
    return ""


def write_json(path: Path, value: object) -> None:
    """Write a value as an indented JSON file, whole or not at all."""
    write_whole(path, [json.dumps(value, indent=1) + "\n"])


def write_whole(path: Path, chunks: Iterable[str]) -> None:
    """Write a text file, whole or not at all; it is on the disk when this returns."""
    with written_aside(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(chunks)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object together with the checksum of its entries, for `read_sealed`."""
    value = json.loads(json.dumps(value))  # as it will be read: keys are text
    write_json(path, {**value, _OWN: json_digest(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `write_sealed` wrote; None when it is absent, or is not what was written."""
    value = read_json(path)
    if not isinstance(value, dict) or value.pop(_OWN, None) != json_digest(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; None when it is absent or not JSON. Raise OSError where that cannot be
    told."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (*_ABSENT, ValueError, RecursionError):
        return None


def json_digest(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value, in which the order of names does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
