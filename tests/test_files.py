"""Files and folders are whole or absent, and damage in them is noticed."""

from __future__ import annotations

import pytest

from gtp_exp.files import (
    SealedFile,
    SealedFolder,
    checked_manifest,
    read_sealed,
    seal_folder,
    write_sealed,
    written_aside,
)


def fill(folder, text="42"):
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "value.txt").write_text(text)


def test_a_folder_appears_when_it_is_finished_with_what_is_said_about_it(tmp_path):
    folder = SealedFolder(tmp_path / "folder")
    assert folder.manifest() is None
    fill(folder.begin(resume=False))
    assert folder.manifest() is None and not folder.path.exists()
    folder.finish({"seconds": 1.5})
    manifest = folder.manifest()
    assert (
        manifest is not None and manifest["seconds"] == 1.5 and list(manifest["files"]) == ["sub/value.txt"]
    )
    assert not folder.part.exists()


@pytest.mark.parametrize("resume", [True, False])
def test_whole_files_of_an_interrupted_writer_are_kept_for_those_who_go_on(tmp_path, resume):
    folder = SealedFolder(tmp_path / "folder")
    fill(folder.begin(resume=True))
    for name in ("manifest.json", "manifest.json.part", "sub/other.txt.part"):
        (folder.part / name).write_text("half")
    left = {p.relative_to(folder.part).as_posix() for p in folder.begin(resume=resume).rglob("*.*")}
    assert left == ({"sub/value.txt"} if resume else set())


def test_a_damaged_folder_is_named_and_deleted(tmp_path, caplog):
    folder = SealedFolder(tmp_path / "folder")
    fill(folder.begin(resume=False))
    folder.finish()
    fill(folder.path, "43")
    assert folder.manifest() is None and not folder.path.exists()
    assert "folder" in caplog.text and "sub/value.txt does not match its checksum" in caplog.text


@pytest.mark.parametrize("kind", ["damaged", "gone", "a file"])
def test_what_stands_in_the_place_of_a_folder_gives_way(tmp_path, caplog, kind):
    """A link to a folder that was moved to another disk, or a stray file; the moved folder stays."""
    folder, moved = SealedFolder(tmp_path / "folder"), SealedFolder(tmp_path / "moved")
    if kind == "a file":
        folder.path.write_text("stray")
        folder.part.write_text("stray")
    else:
        fill(moved.begin(resume=False))
        moved.finish()
        fill(moved.path, "43")
        if kind == "gone":
            moved.path.rename(tmp_path / "elsewhere")
        folder.path.symlink_to(moved.path)
        folder.part.symlink_to(tmp_path / "nowhere")
    assert folder.manifest() is None and "making it again" in caplog.text
    fill(folder.begin(resume=True))
    folder.finish()
    assert folder.manifest() is not None
    assert moved.path.exists() == (kind == "damaged")


def test_a_folder_that_is_sealed_again_is_checked_against_its_new_content(tmp_path):
    """A fine-tune that passed over a damaged checkpoint saves another one of the same step in its place."""
    fill(tmp_path)
    seal_folder(tmp_path)
    fill(tmp_path, "43")
    assert checked_manifest(tmp_path)[1] == "sub/value.txt does not match its checksum"
    seal_folder(tmp_path)
    assert checked_manifest(tmp_path)[1] == ""


@pytest.mark.parametrize("damaged", ["data.bin", "data.json"])
def test_a_file_is_checked_against_the_checksum_beside_it(tmp_path, caplog, damaged):
    file = SealedFile(tmp_path / "data.bin")
    assert not file.intact()
    file.write(lambda partial: partial.write_bytes(b"1234"))
    assert file.intact() and file.path.read_bytes() == b"1234" and not caplog.text
    (tmp_path / damaged).write_bytes(b"1235")
    assert not file.intact() and "data.bin" in caplog.text and "data.json" in caplog.text
    assert (file.checksum() is None) == (damaged == "data.json")
    file.write(lambda partial: partial.write_bytes(b"1234"))
    assert file.intact()


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_aside(path) as partial:
        partial.write_text("half of the new")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_sealed_object_that_was_edited_is_not_read(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, {"seconds": 1})
    assert read_sealed(path) == {"seconds": 1}
    path.write_text(path.read_text().replace("1,", "2,"))
    assert read_sealed(path) is None
