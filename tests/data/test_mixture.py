"""Several labelled sources as one pool; the published pool of LESS is one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from forms import chat, columns, write_lines
from options import option

from gtp_exp.config import build
from gtp_exp.data.forms import Format, Ids
from gtp_exp.data.sources.mixture import Mixture, MixturePart
from gtp_exp.errors import UserError


def source(label: str, *files: str, rows: int | None = None, expected: int | None = None) -> MixturePart:
    return MixturePart(label, list(files), rows, expected)


def mixture(
    *sources: MixturePart, path: str | None = None, rows: int | None = None, seed: int = 0, **changes
) -> Mixture:
    values = {"hub_id": None, "revision": None, "archive": None, "format": Format.AUTO, "columns": columns()}
    return Mixture(**{**values, **changes}, path=path, sources=list(sources), rows=rows, seed=seed)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        rows = [chat(f"{name}{i:02d}", "Hi", f"{name}{i}", source="overruled", n=i) for i in range(20)]
        write_lines(tmp_path / f"{name}.jsonl", *rows, chat(f"{name}-empty", "Hi", ""))
    return tmp_path


A, B = source("first", "a.jsonl"), source("second", "b.jsonl")


def test_rows_carry_the_label_of_their_source(folder):
    pool = mixture(A, B, path=str(folder)).load()
    assert [e.id[0] for e in pool.examples] == ["a"] * 20 + ["b"] * 20
    assert pool.skipped == {"empty completion": 2}
    assert pool.hidden["a03"] == {"source": "first", "n": 3}
    assert pool.hidden["b03"] == {"source": "second", "n": 3}


def test_a_zip_file_reads_like_its_folder(folder):
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("a.jsonl", "b.jsonl"):
            zipped.write(folder / name, f"data/{name}")
    inside = [source("first", "data/a.jsonl"), source("second", "data/b.jsonl")]
    assert mixture(*inside, path=str(folder / "all.zip")).load() == mixture(A, B, path=str(folder)).load()


def test_local_files_need_no_hub(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(mixture(A, B).load().examples) == 40


def test_a_source_has_its_own_subset_whatever_the_others_are(folder):
    few = source("first", "a.jsonl", rows=5)
    alone = mixture(few, path=str(folder), seed=3).load().examples
    both = mixture(few, B, path=str(folder), seed=3).load().examples
    assert len(alone) == 5 and both[:5] == alone and len(both) == 25
    assert alone != mixture(few, path=str(folder), seed=4).load().examples
    assert len(mixture(few, B, path=str(folder), rows=7).load().examples) == 7


def test_sources_without_ids_are_numbered_by_label(tmp_path):
    for name in ("x", "y", "z"):
        write_lines(tmp_path / f"{name}.jsonl", {"prompt": "p", "completion": "c"})
    pool = mixture(source("l", "x.jsonl"), source("m", "y.jsonl", "z.jsonl"), path=str(tmp_path)).load()
    assert [e.id for e in pool.examples] == ["l-000001", "m-1-000001", "m-2-000001"]


def test_an_id_in_two_sources_is_refused_with_both_places(folder):
    write_lines(folder / "b.jsonl", chat("a00", "Hi", "Hello"))
    with pytest.raises(UserError, match="id 'a00' occurs twice: .*a.jsonl:1 and .*b.jsonl:1"):
        mixture(A, B, path=str(folder)).load()


def test_an_id_in_two_sources_can_be_told_apart_by_its_label(folder):
    write_lines(folder / "b.jsonl", chat("a00", "Hi", "Hello"))
    ids = [e.id for e in mixture(A, B, path=str(folder), ids=Ids.FILE).load().examples]
    assert ids[0] == "first-a00" and ids[-1] == "second-a00"


def test_another_size_than_expected_is_refused(folder):
    assert len(mixture(source("first", "a.jsonl", expected=21), path=str(folder)).load().examples) == 20
    both = mixture(A, source("second", "b.jsonl", expected=21), path=str(folder))
    assert len(both.load().examples) == 40
    with pytest.raises(UserError, match="source 'first' holds 21 rows, not the expected 20"):
        mixture(source("first", "a.jsonl", expected=20), path=str(folder)).load()


def test_an_archive_that_is_none_or_lacks_a_file_is_refused(folder):
    (folder / "bad.zip").write_bytes(b"PK not a zip file")
    with pytest.raises(UserError, match="cannot be read as a zip file"):
        mixture(A, path=str(folder / "bad.zip")).load()
    with zipfile.ZipFile(folder / "other.zip", "w") as zipped:
        zipped.writestr("c.jsonl", "")
        zipped.writestr("c.csv", "")
    with pytest.raises(UserError, match="holds no file a.jsonl"):
        mixture(A, path=str(folder / "other.zip")).load()
    with pytest.raises(UserError, match="holds no rows"):
        mixture(source("c", "c.jsonl"), path=str(folder / "other.zip")).load()
    with pytest.raises(UserError, match="unpack the archive"):
        mixture(source("c", "c.csv"), path=str(folder / "other.zip")).load()
    with pytest.raises(UserError, match="does not exist"):
        mixture(A, path=str(folder / "none.zip")).load()


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [((6, 8), 1, "is encrypted"), ((8, 10), 9, "compression method is not supported")],
    ids=["encrypted", "deflate64, as Windows packs large folders"],
)
def test_an_archive_that_python_cannot_unpack_is_refused(folder, at, value, reason):
    """at: where the flags, or the method, stand in a member's header and in the list at the end."""
    with zipfile.ZipFile(folder / "all.zip", "w") as zipped:
        zipped.write(folder / "a.jsonl", "a.jsonl")
    packed = bytearray((folder / "all.zip").read_bytes())
    packed[at[0]], packed[packed.find(b"PK\x01\x02") + at[1]] = value, value
    (folder / "all.zip").write_bytes(packed)
    with pytest.raises(UserError, match=f"all.zip cannot be read as a zip file: .*{reason}"):
        mixture(A, path=str(folder / "all.zip")).load()


def test_messages_name_a_path_as_it_was_given(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    write_lines(folder / "bad.jsonl", chat("x", "Hi", "Hello"), "{not json")
    with zipfile.ZipFile(folder / "all.zip", "w") as zipped:
        zipped.writestr("c.jsonl", "")
    bad = source("bad", "bad.jsonl")
    for path, name in (
        (".", "bad.jsonl:2"),
        ("~", "~/bad.jsonl:2"),
        (None, "bad.jsonl:2"),
        ("~/none", "dataset.path=~/none"),
        ("~/all.zip", "~/all.zip holds no file bad.jsonl"),
    ):
        with pytest.raises(UserError) as error:
            mixture(bad, path=path).load()
        assert name in str(error.value) and str(folder) not in str(error.value)


def test_a_file_of_the_hub_is_named_by_its_repository_and_not_by_the_cache(folder, monkeypatch):
    """What was fetched lies in a cache folder of this machine."""
    write_lines(folder / "a.jsonl", chat("x", "Hi", "Hello"), "{not json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, file, **__: str(folder / file))
    with pytest.raises(UserError, match="^owner/name/a.jsonl:2 ") as error:
        mixture(A, hub_id="owner/name").load()
    assert str(folder) not in str(error.value)


def test_sources_need_distinct_labels_and_files():
    for sources in ((), (A, A)):
        with pytest.raises(UserError, match="one label each"):
            mixture(*sources)
    with pytest.raises(UserError, match=r"sources\[empty\].files is empty"):
        mixture(source("empty"))


def test_without_network_the_error_says_what_to_do():
    for archive in ("all.zip", None):
        with pytest.raises(UserError) as error:
            mixture(A, hub_id="nobody-here/no-such-set", archive=archive).load()
        message = str(error.value)
        assert f"nobody-here/no-such-set {archive or 'a.jsonl'}" in message
        assert f"dataset.path={'DIR/all.zip' if archive else 'DIR'}" in message


def test_the_pool_of_less_has_its_published_size():
    less = build(option("dataset", "less_mixture"), "dataset")
    assert sum(s.expected_rows for s in less.sources) == 270_679
    assert [s.label for s in less.sources] == ["flan_v2", "cot", "dolly", "oasst1"]


def test_every_yaml_builds_once_its_files_are_named():
    changes = {"jsonl": {"files": ["a.jsonl"]}, "hub": {"hub_id": "owner/name"}}
    for name in ("jsonl", "hub", "less_mixture", "tulu3"):
        build({**option("dataset", name), **changes.get(name, {})}, "dataset")
