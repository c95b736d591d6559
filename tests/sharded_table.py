"""Print how far two processes are from one, with whole weights and with shared ones, as docs/scaling.md.

PYTHONPATH=.:baselines:benchmarks:tests python tests/sharded_table.py bf16
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from process_differences import differences
from test_processes import run
from test_sharded_weights import FSDP


def main(precision: str) -> None:
    """Run one job three times, and print the largest relative differences by stage."""
    jobs = {"one": (1, []), "whole": (2, []), "shared": (2, ["launch.config_file=accelerate.yaml"])}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in jobs}
        for name, (processes, options) in jobs.items():
            folders[name].mkdir()
            (folders[name] / "accelerate.yaml").write_text(FSDP)
            done = run(folders[name], processes, f"model.precision={precision}", *options)
            assert done.returncode == 0, done.stderr
        found = [differences(folders["one"], folders[name]) for name in ("whole", "shared")]
        between = differences(folders["whole"], folders["shared"])
    print("| stage | two processes | two that share weights | between these |\n|---|---|---|---|")
    for stage in between:
        print(f"| {stage} | {found[0][stage]:.1e} | {found[1][stage]:.1e} | {between[stage]:.1e} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
