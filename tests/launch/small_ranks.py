"""Jobs of small processes, started as real ones are. Run by itself, this is the launcher of one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from gtp_exp.launch.launcher import JobExit, Launch, run_worker

# The parent of the ranks, with a worker of ours and less patience for those that do not end.
_PARENT = "from gtp_exp.launch import ranks; ranks.WORKER, ranks.GRACE_S = 'small_rank', 3.0; ranks.main()"
_WORKER = """\
import os, signal, sys, time
from pathlib import Path
from gtp_exp.launch.parent import die_with_parent
die_with_parent(int(sys.argv[2]))
folder, rank = Path(sys.argv[1]).parent, os.environ.get("RANK", "0")
(folder / f"pid{rank}").write_text(str(os.getpid()))
exec(os.environ["DOES_" + rank])
"""
# Accelerate starts one process by itself, and several through torchrun.
_KINDS = {1: "'NO'", 2: "MULTI_GPU"}


@dataclass(frozen=True)
class SmallRanks(Launch):
    """Is a launch of processes that each run the Python code in the environment variable DOES_<rank>."""

    def command(self, resolved: Path) -> list[str]:
        python, _, _, *arguments = super().command(resolved)
        return [python, "-c", _PARENT, *arguments]


def write(folder: Path) -> None:
    """Write the worker, and the configurations of Accelerate, into a folder that is to be importable."""
    (folder / "small_rank.py").write_text(_WORKER)
    for processes, kind in _KINDS.items():
        (folder / f"accelerate{processes}.yaml").write_text(
            f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_machines: 1\n"
        )


def run(folder: Path, processes: int = 2, *, accelerate: bool = False, **options) -> JobExit:
    """How a job with this run folder ended."""
    file = {"config_file": str(folder / f"accelerate{processes}.yaml")} if accelerate else {}
    return run_worker(folder / "resolved.yaml", SmallRanks(num_processes=processes, **file, **options))


if __name__ == "__main__":
    ended = run(Path(sys.argv[1]))
    print(ended, flush=True)
    os._exit(ended.status)
