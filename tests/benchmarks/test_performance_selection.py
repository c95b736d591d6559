"""The selection benchmark measures what it says: planted pools, the reference procedure, every part end to
end.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from gtp_benchmarks.performance import recovery
from gtp_benchmarks.performance.clustered import BLOCK, Clustered
from gtp_benchmarks.performance.one_atom_omp import fit_step_cost, one_atom_omp
from gtp_benchmarks.performance.selection import PARTS, main
from gtp_exp.selection.atoms import fused
from gtp_exp.selection.atoms.matrix import tensor_atoms
from gtp_exp.selection.solvers.omp import OMP
from gtp_exp.selection.solvers.pursuit import PursuitProblem


def test_the_pool_is_clustered_has_copies_and_a_noisy_target():
    pool = Clustered(2 * BLOCK + 100, 512, seed=3)
    atoms = pool.atoms()
    assert torch.allclose(atoms.norm(dim=1), torch.ones(len(atoms)))
    nearest = (atoms @ pool.centres().T).amax(1)
    assert 0.6 < float(nearest.median()) < 0.8  # half the energy is the centre's
    assert len(atoms) - len(atoms.unique(dim=0)) == int(0.1 * BLOCK) * 2 + 10
    assert torch.equal(torch.cat(list(pool.blocks())), atoms)
    clean, observed = pool.clean(), pool.target_rows().double().mean(0)
    assert 0.25 < float((observed - clean).norm() / clean.norm()) < 0.31


def test_checkpoints_share_clusters_and_copies_only():
    first, second = (Clustered(500, 512, seed=0, checkpoint=t) for t in (0, 1))
    a, b = first.atoms(), second.atoms()
    assert not torch.allclose(a, b)
    assert torch.equal((a @ first.centres().T).argmax(1), (b @ second.centres().T).argmax(1))
    same = [torch.cdist(x, x) < 1e-2 for x in (a, b)]
    assert torch.equal(*same)


def test_the_reference_is_orthogonal_matching_pursuit():
    """Where no weight turns negative it takes the rows that the incremental solver takes."""
    pool = Clustered(800, 256, seed=1)
    atoms, target = pool.atoms(), pool.target_rows().double().mean(0)
    published = one_atom_omp(atoms, target.float(), steps=(5, 12), lam=1e-3)
    for size, found in zip((5, 12), published, strict=True):
        ours = OMP().pursue(PursuitProblem(tensor_atoms(atoms), target[:, None], size, 1e-3))
        assert set(found.indices.tolist()) == set(ours.support.tolist())
        assert len(found.step_seconds) == size


def test_the_step_cost_recovers_a_known_one():
    k = np.arange(1, 201)
    cost = fit_step_cost(tuple(0.02 + 3e-6 * k**2))
    assert cost.determination > 0.9999
    assert abs(cost.total(1000) / (0.02 + 3e-6 * np.arange(1, 1001) ** 2).sum() - 1) < 0.05


def test_every_part_runs_and_reports(tmp_path, capsys, monkeypatch):
    # The real one takes a C++ compiler many seconds; test_fused.py makes it.
    monkeypatch.setattr(fused, "widen_and_dot", lambda dim, dtype: lambda rows, column: rows.float() @ column)
    sizes = ["--rows", "1500", "--dim", "64", "--sizes", "8", "--beyond", "80", "--repeats", "1"]
    disk = ["--disk-rows", "1500", "--disk-sizes", "10", "--scratch", str(tmp_path / "new")]
    assert main([*sizes, *disk, "--output", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert {row["wanted"] for row in written["rows"]} == {8, 80, 10}
    by_method = {(row["wanted"], row["method"]): row for row in written["rows"]}
    for (wanted, method), row in by_method.items():
        if method.startswith("GTP"):
            assert row["rows"] == wanted and row["copies"] == 0 and 0 < row["residual"] < 1
    assert {section.split(",")[0] for section in written["repeats"]} == {"pass", "inside", "beyond"}
    shown = capsys.readouterr().out
    assert "int8" in shown and "extrapolated" in shown.lower() and len(PARTS) == 5
    assert not list((tmp_path / "new").iterdir())  # the store is gone
    reads = [f for f in written["figures"] if "plain read" in f["what"] and "on disk" in f["what"]]
    assert len(reads) == 1 and reads[0]["value"] > 0 and reads[0]["bar"] == 12


def test_recovery_is_perfect_for_few_rows_and_tells_solvers_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "SHARES", (1 / 16, 1 / 4))
    options = ["--rows", "300", "--dim", "32", "--truth-rows", "600", "--truth-dim", "64", "--seeds", "2"]
    assert recovery.main([*options, "--truth-sizes", "8", "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "recovery.json").read_text())
    few = [r for r in written["recall"] if r["share"] == 1 / 16 and r["noise"] == 0]
    assert {r["solver"] for r in few} == set(recovery.SOLVERS)
    assert all(r["values"] == [1.0, 1.0] for r in few if not r["solver"].startswith("top-M"))
    assert {t["fit"] for t in written["truth"]} == set(recovery.FITS)
    assert all(0 < value < 1 for t in written["truth"] for value in t["clean"])
