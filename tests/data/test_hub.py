"""Hub data sets, by way of local copies; without network the error says what to do."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict
from forms import chat, columns, write_lines

from gtp_exp.data.forms import Format, Ids
from gtp_exp.data.local_folder import content_digest
from gtp_exp.data.sources.hub import Hub
from gtp_exp.errors import UserError

ROWS = [chat(f"{i:03d}", f"Question {i}", f"Answer {i}" if i % 10 else "", source="s") for i in range(100)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def hub(**changes) -> Hub:
    values = {
        "hub_id": "owner/name",
        "config": None,
        "split": "train",
        "revision": None,
        "path": None,
        "expected_rows": None,
        "format": Format.AUTO,
        "columns": columns(),
        "rows": None,
        "seed": 0,
    }
    return Hub(**{**values, **changes})


@pytest.fixture
def copy(tmp_path) -> str:
    """A downloaded data set repository: parquet files in a folder."""
    folder = tmp_path / "copy-of-set"
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(ROWS).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return str(folder)


def test_every_kind_of_local_copy_gives_the_same_pool(tmp_path, copy):
    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "saved")
    DatasetDict(train=data).save_to_disk(tmp_path / "saved-splits")
    lines = write_lines(tmp_path / "rows.jsonl", *ROWS)
    pools = [hub(path=str(p)).load() for p in (copy, tmp_path / "saved", tmp_path / "saved-splits", lines)]
    assert len(pools[0].examples) == 90
    assert pools[0].skipped == {"empty completion": 10}
    assert pools[0].hidden["001"] == {"source": "s"}
    assert all(pool == pools[0] for pool in pools)


def with_card(folder: Path, rows: list[dict]) -> Path:
    """A downloaded data set whose card lists its files; all of them have the same card."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/train-*.parquet\n---\n"
    )
    return folder


def test_a_folder_gives_its_own_rows_whatever_was_read_before(tmp_path):
    first = with_card(tmp_path / "first" / "mydata", ROWS[1:4])
    second = with_card(tmp_path / "second" / "mydata", ROWS[5:7])

    def ids(folder: Path) -> list[str]:
        return [example.id for example in hub(path=str(folder)).load().examples]

    assert ids(first) == ["001", "002", "003"]
    assert ids(second) == ["005", "006"]
    with_card(first, ROWS[8:10])  # edited in place
    assert ids(first) == ["008", "009"]


def test_a_linked_folder_is_part_of_what_is_read(tmp_path):
    folder = with_card(tmp_path / "set", ROWS[1:4])
    elsewhere = (folder / "data").rename(tmp_path / "elsewhere")
    (folder / "data").symlink_to(elsewhere)
    before = content_digest(folder)
    Dataset.from_list(ROWS[5:7]).to_parquet(elsewhere / "train-00000-of-00001.parquet")
    assert content_digest(folder) != before
    assert len(hub(path=str(folder)).load().examples) == 2


def test_a_files_name_is_part_of_a_folders_content_and_what_a_download_leaves_beside_is_not(tmp_path):
    """A name tells a file's split."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    before = content_digest(tmp_path)
    for name in (".cache", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl.metadata").write_text("today")
    assert content_digest(tmp_path) == before
    (tmp_path / "train.jsonl").rename(tmp_path / "test.jsonl")
    assert content_digest(tmp_path) != before


def test_a_folder_linked_into_itself_is_read_once(tmp_path):
    folder = with_card(tmp_path / "set", ROWS[1:4])
    before = content_digest(folder)
    (folder / "again").symlink_to(folder)
    assert content_digest(folder) == before


def test_a_subset_is_seeded_complete_and_in_row_order(copy):
    pool = hub(path=copy, rows=60, seed=1).load()
    ids = [e.id for e in pool.examples]
    assert len(ids) == 60 and ids == sorted(ids)
    assert pool == hub(path=copy, rows=60, seed=1).load()
    assert ids != [e.id for e in hub(path=copy, rows=60, seed=2).load().examples]
    assert set(pool.hidden) == set(ids)


def test_every_usable_row_is_equally_likely_in_a_subset(copy):
    counts = dict.fromkeys([r["id"] for r in ROWS], 0)
    for seed in range(100):
        for e in hub(path=copy, rows=45, seed=seed).load().examples:
            counts[e.id] += 1
    assert all(counts[f"{i:03d}"] == 0 for i in range(0, 100, 10))
    # binomial(100, 1/2): mean 50, standard deviation 5
    assert all(30 <= counts[f"{i:03d}"] <= 70 for i in range(100) if i % 10)


def test_repeated_ids_are_passed_over_where_rows_are_numbered(tmp_path):
    folder = with_card(tmp_path / "mydata", [ROWS[1], ROWS[1]])
    with pytest.raises(UserError, match="id '001' occurs twice.*dataset.ids=number"):
        hub(path=str(folder)).load()
    examples = hub(path=str(folder), ids=Ids.NUMBER).load().examples
    assert [example.id for example in examples] == ["mydata-000001", "mydata-000002"]


@pytest.mark.parametrize("name", ["mydata", "mydata/data/train-00000-of-00001.parquet"])
def test_a_path_may_begin_at_home(tmp_path, monkeypatch, name):
    with_card(tmp_path / "home" / "mydata", ROWS[1:4])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert len(hub(path=f"~/{name}").load().examples) == 3
    with pytest.raises(UserError) as error:
        hub(path=f"~/{name}", expected_rows=5).load()
    assert "~/" in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_subset_above_the_usable_rows_is_refused(copy):
    with pytest.raises(UserError, match="rows=91 is more than the 90 usable rows"):
        hub(path=copy, rows=91).load()


def test_a_bad_row_is_named_by_its_number(tmp_path):
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": None, "completion": "c"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved\[train\] row 2: 'prompt' must be text, found null"):
        hub(path=str(tmp_path / "saved")).load()


def test_rows_without_ids_are_numbered_by_name(tmp_path):
    Dataset.from_list([{"prompt": "p", "completion": "c"}]).save_to_disk(tmp_path / "saved")
    assert hub(path=str(tmp_path / "saved")).load().examples[0].id == "saved-000001"


def test_another_size_than_expected_is_refused(copy, tmp_path):
    assert len(hub(path=copy, expected_rows=100).load().examples) == 90
    lines = write_lines(tmp_path / "rows.jsonl", *ROWS[:4])
    for path, found in ((copy, 100), (lines, 4)):
        with pytest.raises(UserError, match=f"holds {found} rows, not the expected 99"):
            hub(path=path, expected_rows=99).load()


def test_an_unknown_split_or_a_missing_copy_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match="dataset.path=.*test"):
        hub(path=copy, split="test").load()
    with pytest.raises(UserError, match="does not exist"):
        hub(path=str(tmp_path / "nowhere")).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        hub(path=str(tmp_path / "empty")).load()


def test_without_network_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        hub(hub_id="nobody-here/no-such-set").load()
    message = str(error.value)
    assert "hf download --repo-type dataset nobody-here/no-such-set" in message
    assert "dataset.path=DIR" in message


@pytest.mark.parametrize("name", ["", "gsm8k", "a/b/c", "https://huggingface.co/datasets/a/b", "a b/c"])
def test_a_bare_or_malformed_hub_id_is_refused(name):
    """`datasets` takes a cached local folder of the same name for a bare id."""
    with pytest.raises(UserError, match="must be owner/name"):
        hub(hub_id=name)


def test_a_local_folder_is_not_taken_for_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="would be read in place of the hub's 'owner/name'"):
        hub()


def test_messages_name_a_path_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    with pytest.raises(UserError, match="dataset.path=nowhere does not exist") as error:
        hub(path="nowhere").load()
    said.append(str(error.value))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="dataset.path=empty cannot be read") as error:
        hub(path="empty").load()
    said.append(str(error.value))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match="dataset.path=owner/name") as error:
        hub()
    said.append(str(error.value))
    assert not any(str(tmp_path) in message for message in said)
