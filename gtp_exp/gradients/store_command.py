"""Run the command gtp-exp-store: show what gradient stores hold, and verify every checksum."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gtp_exp.errors import UserError
from gtp_exp.gradients.shards import n_shards
from gtp_exp.gradients.store import GradientStore


def store_summary(store: GradientStore) -> str:
    """Return what a store holds, in lines for a terminal: sizes, settings, and norms per checkpoint."""
    about = store.about
    lines = [
        f"{store.directory}",
        f"rows         {store.n} ({int(store.n_tokens.sum())} completion tokens)",
        f"dimension    {store.dim}, {about['storage']}",
    ]
    if "sketch" in about:  # else the rows were not computed here, but given
        lines[-1] += f", sketch {about['sketch']['kind']}, seed {about['seed']}"
        lines.append(
            f"gradients    {about['reduction']} completion loss, {about['n_parameters']} parameters, "
            f"engine {about['engine']}"
        )
    lines.append(
        f"shards       {n_shards(store.n, about['shard_rows'])} of {about['shard_rows']} rows a checkpoint, "
        f"{store.nbytes / 1e6:.1f} MB in all"
    )
    if len(store.quarantined):
        ids = [store.ids[i] for i in store.quarantined[:5].tolist()]
        lines.append(f"quarantined  {len(store.quarantined)} rows, not finite: {', '.join(ids)}")
    for t, checkpoint in enumerate(about["checkpoints"]):
        for direction in store.directions:
            norms = store.norms(t, direction)
            norms = norms[norms.isfinite()]
            lines.append(
                f"checkpoint {t} step {checkpoint['step']}, learning rate {checkpoint['learning_rate']:.3g}, "
                f"{direction}: norm median {norms.median():.4g}, min {norms.min():.4g}, max {norms.max():.4g}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Show and verify the stores that the command line names. Return 1 for damage, 2 for what is no store."""
    parser = argparse.ArgumentParser(prog="gtp-exp-store", description="Show and verify gradient stores.")
    parser.add_argument("path", nargs="+", type=Path, help="directory of a store")
    arguments = parser.parse_args(argv)
    damaged = False
    for path in arguments.path:
        try:
            store = GradientStore.open(path)
            problems = store.verify()
            # Checksums first: a summary of damaged files would mislead or crash.
            lines = problems or [store_summary(store), "verified: every checksum is right"]
            print("\n".join(lines))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        damaged |= bool(problems)
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
