"""Stores of other projects' files: each format as its writer makes it, streamed, and refused by file where it
does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import gtp_exp
from gtp_exp.errors import UserError
from gtp_exp.gradients.foreign import read_bergson, read_labels, read_less
from gtp_exp.gradients.store import GradientStore
from gtp_exp.gradients.store_command import main
from gtp_exp.gradients.transfer import ImportOptions, export_numpy, import_store

N, D = 30, 12
NOTHING_SAID = ImportOptions()


def matrices(checkpoints: int = 2, rows: int = N, seed: int = 0) -> list[torch.Tensor]:
    """Return planted gradients, one matrix [rows, D] per checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, D, generator=generator) + 0.3 for _ in range(checkpoints)]


def write_less(folder: Path, matrix: torch.Tensor, dtype=torch.float16) -> Path:
    """Write what collect_grad_reps.py leaves: parts of 16 rows, the merged rows, and these normalised."""
    folder.mkdir(parents=True)
    parts = [part.clone() for part in matrix.to(dtype).split(16)]
    for i, part in enumerate(parts):
        torch.save(part, folder / f"grads-{16 * (i + 1)}.pt")
    normalised = [torch.nn.functional.normalize(part, dim=1) for part in parts]
    torch.save(torch.cat(normalised), folder / "all_orig.pt")
    torch.save(torch.cat(parts), folder / "all_unormalized.pt")
    return folder


def write_bergson(folder: Path, matrix: torch.Tensor, sizes: dict[str, int], dtype: str = "float32") -> Path:
    """Write what bergson.data.create_index and its Builder leave: a truncated file that is mapped and
    filled, and its record."""
    folder.mkdir(parents=True)
    values = matrix.to(getattr(torch, dtype))
    with (folder / "gradients.bin").open("wb") as file:
        file.truncate(values.nbytes)
    raw = np.memmap(folder / "gradients.bin", dtype=np.uint8, mode="r+")
    raw[:] = values.contiguous().view(torch.uint8).numpy().reshape(-1)
    raw.flush()
    record = {"attribute_tokens": False, "num_items": len(matrix), "num_grads": len(matrix)}
    record |= {"grad_sizes": sizes, "base_dtype": dtype}
    (folder / "info.json").write_text(json.dumps(record, indent=2))
    return folder


def write_each(folder: Path, kind: str, parts: list[torch.Tensor]) -> list[Path]:
    """Write the same gradients in the format of one project, a path per checkpoint."""
    paths = []
    for t, matrix in enumerate(parts):
        if kind == "less":
            paths.append(write_less(folder / f"pool-ckpt{t}-sgd" / f"dim{D}", matrix, torch.float32))
        elif kind == "bergson":
            paths.append(write_bergson(folder / f"run{t}", matrix, {"q": 5, "v": D - 5}))
        else:
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{t}.npy", matrix.numpy())
            paths.append(folder / f"{t}.npy")
    return paths


@pytest.mark.parametrize("kind", ["less", "bergson", "numpy"])
def test_an_imported_store_chooses_what_the_arrays_choose(tmp_path, kind):
    pool, target = matrices(), matrices(rows=6, seed=1)
    rates = (2e-3, 5e-4)
    options = ImportOptions(learning_rates=rates)
    store = import_store(kind, write_each(tmp_path / "pool", kind, pool), tmp_path / "stores" / "p", options)
    aims = import_store(
        kind, write_each(tmp_path / "target", kind, target), tmp_path / "stores" / "t", options
    )
    for t, matrix in enumerate(pool):
        assert torch.equal(store.features(t, "sgd").rows(torch.arange(N)), matrix)
    ours = GradientStore.from_arrays(tmp_path / "ours", pool, learning_rates=rates)
    expected = gtp_exp.select(ours, target, budget=7)
    found = gtp_exp.select(store, aims, budget=7)
    assert found.indices.tolist() == expected.indices.tolist()
    assert torch.equal(found.weights, expected.weights)
    assert store.key == ours.key and store.verify() == [] and store.ids[3] == "row-3"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_less_types_are_kept_and_its_folder_tells_the_direction(tmp_path, dtype):
    folder = write_less(tmp_path / "dolly-ckpt105-adam" / "dim12", matrices()[0], dtype)
    merged = torch.load(folder / "all_unormalized.pt", weights_only=True)
    store = import_store("less", [folder.parent], tmp_path / "store", NOTHING_SAID)
    assert store.dtype == dtype and store.directions == ("less",)
    assert torch.equal(store.features(0, "less").rows(torch.arange(N)), merged)
    normalised = import_store("less", [folder / "all_orig.pt"], tmp_path / "unit", NOTHING_SAID)
    assert (normalised.norms(0, "less") - 1).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_bergson_types_are_kept(tmp_path, dtype):
    folder = write_bergson(tmp_path / "run", matrices()[0], {"q": 4, "k": 4, "v": 4}, dtype)
    store = import_store("bergson", [folder], tmp_path / "store", NOTHING_SAID)
    expected = matrices()[0].to(getattr(torch, dtype))
    assert torch.equal(store.features(0, "sgd").rows(torch.arange(N)), expected)


def test_a_bergson_index_of_structured_rows_is_read(tmp_path):
    folder = write_bergson(tmp_path / "run", matrices()[0], {"q": 5, "v": 7})
    record = json.loads((folder / "info.json").read_text())
    del record["base_dtype"]
    named = {"names": ["q", "v"], "formats": ["(5,)<f4", "(7,)<f4"], "offsets": [0, 20], "itemsize": 48}
    (folder / "info.json").write_text(json.dumps({**record, "dtype": named}))
    assert torch.equal(read_bergson(folder).rows.rows(torch.arange(N)), matrices()[0])
    named["itemsize"] = 64
    (folder / "info.json").write_text(json.dumps({**record, "dtype": named}))
    with pytest.raises(UserError, match="info.json: rows of float32 cannot be read"):
        read_bergson(folder)


def test_an_index_that_bergson_itself_makes_is_read(tmp_path):
    data = pytest.importorskip("bergson.data")
    sizes = {"q": 5, "v": 7}
    written = data.create_index(tmp_path / "run", num_grads=N, grad_sizes=sizes, dtype=np.float16)
    written[:] = matrices()[0].half().numpy()
    written.flush()
    assert torch.equal(read_bergson(tmp_path / "run").rows.rows(torch.arange(N)), matrices()[0].half())


def test_a_file_is_mapped_and_not_read(tmp_path):
    folder = tmp_path / "x-sgd" / "dim2048"
    folder.mkdir(parents=True)
    torch.save(torch.zeros(1 << 14, 1 << 11, dtype=torch.float16), folder / "all_orig.pt")  # 64 MiB
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    before = resident()
    mapped = read_less(folder)
    _, chunk = next(mapped.rows.chunks(4))
    assert chunk.shape == (4, 1 << 11) and resident() - before < 16 << 20


def test_rows_that_are_not_finite_are_quarantined_as_in_a_collected_store(tmp_path, capsys):
    first, second = matrices()
    first[4, 1], second[9] = float("nan"), float("inf")
    paths = write_each(tmp_path / "in", "numpy", [first, second])
    (tmp_path / "ids.txt").write_text("".join(f"q{i}\n" for i in range(N)))
    words = ["import", "--from", "numpy", *map(str, paths), str(tmp_path / "store")]
    assert main([*words, "--ids", str(tmp_path / "ids.txt")]) == 0
    assert "quarantined  2 rows, not finite: q4, q9" in capsys.readouterr().out
    store = GradientStore.open(tmp_path / "store")
    assert store.quarantined.tolist() == [4, 9]
    assert store.features(0, "sgd").rows(torch.tensor([4])).abs().sum() == 0
    chosen = gtp_exp.select(store, matrices(rows=6, seed=1), budget=N - 2)
    assert not {4, 9} & set(chosen.indices.tolist())
    with pytest.raises(UserError, match="none of the 2 rows is finite"):
        paths = write_each(tmp_path / "nan", "numpy", [torch.full((2, 3), float("nan"))])
        import_store("numpy", paths, tmp_path / "other", NOTHING_SAID)


def test_rows_whose_norm_overflows_are_not_finite_either(tmp_path):
    """They are quarantined, so that an import of nothing else is refused."""
    paths = write_each(tmp_path / "in", "numpy", [torch.full((2, 3), 1e30)])
    with pytest.raises(UserError, match="none of the 2 rows is finite"):
        import_store("numpy", paths, tmp_path / "store", NOTHING_SAID)


def test_what_is_exported_is_what_was_stored_and_can_be_imported_again(tmp_path):
    first, second = matrices()
    second[9] = float("nan")
    subtasks = ImportOptions(learning_rates=(1.0, 0.5), subtasks="3")
    store = import_store(
        "numpy", write_each(tmp_path / "in", "numpy", [first, second]), tmp_path / "store", subtasks
    )
    assert store.subtasks is not None and store.subtasks[9:11] == ("subtask-0", "subtask-1")
    names = export_numpy(store, tmp_path / "out")
    assert names == sorted([*(f"checkpoint-0{t}.sgd{end}.npy" for t in (0, 1) for end in ("", ".norm")),
                            "ids.json", "subtasks.json", "manifest.json"])  # fmt: skip
    assert np.isnan(np.load(tmp_path / "out" / names[1])[9]).all()
    keep = [i for i in range(N) if i != 9]
    assert np.array_equal(np.load(tmp_path / "out" / "checkpoint-00.sgd.npy")[keep], first[keep].numpy())
    again = import_store(
        "numpy",
        [tmp_path / "out" / f"checkpoint-0{t}.sgd.npy" for t in (0, 1)],
        tmp_path / "again",
        ImportOptions(
            tmp_path / "out" / "ids.json", (1.0, 0.5), None, str(tmp_path / "out" / "subtasks.json")
        ),
    )
    assert again.quarantined.tolist() == store.quarantined.tolist() == [9]
    assert again.ids == store.ids and again.subtasks == store.subtasks
    kept = torch.tensor(keep)
    assert torch.equal(again.features(1, "sgd").rows(kept), store.features(1, "sgd").rows(kept))


def test_an_interrupted_import_goes_on_and_a_finished_one_is_not_written_over(tmp_path):
    paths = write_each(tmp_path / "in", "numpy", matrices())
    store = import_store("numpy", paths, tmp_path / "store", NOTHING_SAID)
    key = store.key
    for name in ("store.json", "checkpoint-01/shard-00000.safetensors"):
        (tmp_path / "store" / name).unlink()
    assert import_store("numpy", paths, tmp_path / "store", NOTHING_SAID).key == key
    for taken in (tmp_path / "store", tmp_path / "in"):
        with pytest.raises(UserError, match=r"exists; choose another folder, or delete it"):
            import_store("numpy", paths, taken, NOTHING_SAID)
    with pytest.raises(UserError, match=r"in exists; choose another folder"):
        export_numpy(store, tmp_path / "in")


def refused(tmp_path: Path, capsys, kind: str, paths: list[Path], *more: str) -> str:
    """Return the one line with which the command refuses an import."""
    assert main(["import", "--from", kind, *map(str, paths), str(tmp_path / "refused"), *more]) == 2
    assert not (tmp_path / "refused").exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_files_that_are_cut_or_of_another_kind_are_named(tmp_path, capsys):
    less = write_less(tmp_path / "p-ckpt1-sgd" / "dim12", matrices()[0]) / "all_orig.pt"
    less.write_bytes(less.read_bytes()[:-500])
    assert f"{less} is no whole .pt file" in refused(tmp_path, capsys, "less", [less])
    torch.save({"grads": 1}, less)
    assert f"{less} holds a dict" in refused(tmp_path, capsys, "less", [less])
    torch.save(Path("x"), less)  # a class that weights_only does not load
    assert f"{less} cannot be read as a tensor" in refused(tmp_path, capsys, "less", [less])
    torch.save(torch.zeros(3), less)
    assert f"{less} has the shape [3]" in refused(tmp_path, capsys, "less", [less])
    gone = tmp_path / "nowhere"
    for kind, told in (("less", gone), ("bergson", gone / "gradients.bin"), ("numpy", gone)):
        assert f"{told} does not exist" in refused(tmp_path, capsys, kind, [gone])
    assert f"{tmp_path} is a folder; give one .npy" in refused(tmp_path, capsys, "numpy", [tmp_path])

    index = write_bergson(tmp_path / "run", matrices()[0], {"q": D})
    file = index / "gradients.bin"
    file.write_bytes(file.read_bytes()[:-4])
    line = refused(tmp_path, capsys, "bergson", [index])
    assert f"{file} has 1,436 bytes, and 30 rows of 12 float32 values are 1,440: it is truncated" in line
    record = json.loads((index / "info.json").read_text())
    (index / "info.json").write_text(json.dumps({**record, "attribute_tokens": True}))
    assert "a row for every token" in refused(tmp_path, capsys, "bergson", [index])
    (index / "info.json").write_text('{"num_grads": 3}')
    assert "info.json is not the record of a bergson index" in refused(tmp_path, capsys, "bergson", [index])

    np.save(tmp_path / "a.npy", np.zeros((4, 3), np.float32))
    cut = tmp_path / "a.npy"
    cut.write_bytes(cut.read_bytes()[:-4])
    assert f"{cut} is no whole .npy file" in refused(tmp_path, capsys, "numpy", [cut])
    np.save(cut, np.array([{}]), allow_pickle=True)
    assert f"{cut} is no whole .npy file of numbers" in refused(tmp_path, capsys, "numpy", [cut])


def test_checkpoints_ids_rates_and_subtasks_that_do_not_fit_are_named(tmp_path, capsys):
    (one, other) = write_each(tmp_path / "in", "numpy", [matrices()[0], matrices(rows=N - 1)[0]])
    line = refused(tmp_path, capsys, "numpy", [one, other])
    assert line.startswith(f"{other} holds 29 rows of 12 values and {one} 30 rows of 12 values")
    ids = tmp_path / "ids.txt"
    ids.write_text("a\nb\n")
    assert f"{ids}: ids has the length 2, not 30; give one id for each row" in refused(
        tmp_path, capsys, "numpy", [one], f"--ids={ids}"
    )
    ids.write_text("a\n" * N)
    assert f"{ids}: id 'a' occurs twice: rows 0 and 1" in refused(
        tmp_path, capsys, "numpy", [one], f"--ids={ids}"
    )
    rows = tmp_path / "pool.jsonl"
    rows.write_text('{"id": "a"}\n{"prompt": "b"}\n')
    assert f"{rows}:2: the row has no 'id'" in refused(tmp_path, capsys, "numpy", [one], f"--ids={rows}")
    assert "[0.1, 0.2]" in refused(tmp_path, capsys, "numpy", [one], "--learning-rates=0.1,0.2").replace(
        "(0.1, 0.2)", "[0.1, 0.2]"
    )
    absent = refused(tmp_path, capsys, "numpy", [one], f"--ids={tmp_path / 'absent'}")
    assert absent.startswith(f"{tmp_path / 'absent'} cannot be read: No such file")
    (tmp_path / "latin.txt").write_bytes("é\n".encode("latin-1") * N)
    latin = refused(tmp_path, capsys, "numpy", [one], f"--ids={tmp_path / 'latin.txt'}")
    assert "latin.txt is not UTF-8" in latin and "iconv -f WINDOWS-1252 -t UTF-8" in latin
    with pytest.raises(SystemExit):
        main(["import", "--from", "numpy", str(one), str(tmp_path / "out"), "--learning-rates=0.1,x"])
    told = "argument --learning-rates: '0.1,x' is no list of numbers; write 0.001,0.0005"
    assert told in capsys.readouterr().err
    assert "30 rows are not 7 groups of one size" in refused(tmp_path, capsys, "numpy", [one], "--subtasks=7")
    adam = write_less(tmp_path / "p-ckpt1-adam" / "dim12", matrices()[0])
    sgd = write_less(tmp_path / "p-ckpt2-sgd" / "dim12", matrices()[0])
    assert "name several directions (less, sgd)" in refused(tmp_path, capsys, "less", [adam, sgd])


def test_labels_in_json_lines_may_hold_any_character_and_blank_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "a", "text": "x\u2028y"}\n\n{"id": "b"}\n\n', encoding="utf-8")
    assert read_labels(file, "id") == ["a", "b"]
    (tmp_path / "ids.txt").write_text("a\u2028b\nc\n", encoding="utf-8")
    assert read_labels(tmp_path / "ids.txt", "id") == ["a\u2028b", "c"]


@pytest.mark.parametrize(("name", "text"), [("ids.txt", "a\nb\n"), ("ids.json", '["a", "b"]')])
def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_labels(tmp_path / name, "id") == ["a", "b"]


def test_a_json_list_of_rows_is_read_by_the_key_of_each(tmp_path):
    """Each row became one text, as Python prints it: no id of the pool's, and a group of its own."""
    file = tmp_path / "pool.json"
    rows = [{"id": i, "subtask": "sums", "prompt": f"{i}?"} for i in range(2)]
    file.write_text(json.dumps(rows))
    assert read_labels(file, "id") == ["0", "1"] and read_labels(file, "subtask") == ["sums", "sums"]
    file.write_text('[7, "b"]')
    assert read_labels(file, "id") == ["7", "b"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("ids.json", '[{"id": "a"}, {}]', "ids.json entry 2: the row has no 'id'"),
        ("ids.json", '["a", null]', "ids.json entry 2: None is neither a text nor a number"),
        ("ids.json", '["a", ["b"]]', "ids.json entry 2: .* is neither a text nor a number"),
        ("ids.jsonl", '{"id": "a"}\n{"id": ["b"]}\n', "ids.jsonl:2: .* is neither a text nor a number"),
    ],
)
def test_what_is_no_label_is_refused_by_its_place(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        read_labels(tmp_path / name, "id")
