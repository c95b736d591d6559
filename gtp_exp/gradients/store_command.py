"""Run the command gtp-exp-store: show and verify gradient stores, import and export their arrays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.gradients.arrays import DIRECTIONS
from gtp_exp.gradients.foreign import READERS
from gtp_exp.gradients.shards import n_shards
from gtp_exp.gradients.store import GradientStore
from gtp_exp.gradients.transfer import ImportOptions, export_numpy, import_store
from gtp_exp.launch.faults import storage_fault

COMMANDS = ("show", "import", "export")
UNIT_TOLERANCE = 5e-3  # of the length of a row that was divided by its length, in half precision
DESCRIPTION = "Gradient stores: show and verify them, make them of other projects' files, take arrays out."
EPILOG = """examples:
  gtp-exp-store outputs/cache/gradients/KEY/store
  gtp-exp-store import --from less dolly-ckpt105-adam/dim8192 dolly-ckpt211-adam/dim8192 stores/dolly
  gtp-exp-store import --from numpy pool.npy stores/pool --ids pool.jsonl
  gtp-exp-store export --to numpy stores/pool arrays/pool

A job chooses from stores:
  gtp-exp gradients=given gradients.pool=stores/pool gradients.target=stores/target
gtp-exp-store COMMAND --help tells the options of a command."""
IMPORTS = """PATH by --from:
  less     all_orig.pt, all_unormalized.pt, or their folder (dim8192), which stands for all_unormalized.pt
  bergson  the folder with gradients.bin and info.json
  numpy    a .npy file [rows, dimension]

Pool and target are two stores, with the same checkpoints in the same order. A FILE of ids or labels has one a
line; of .json it is a list, of .jsonl each row's `id` or `subtask` (the pool's own file will do)."""
_AS_TYPED: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}


def store_summary(store: GradientStore) -> str:
    """Return what a store holds, in lines for a terminal: sizes, settings, and norms per checkpoint."""
    about = store.about
    lines = [
        f"{store.directory}",
        f"rows         {store.n} ({int(store.n_tokens.sum())} completion tokens)",
        f"dimension    {store.dim}, {about['storage']}",
    ]
    if "sketch" in about and not about.get("imported"):  # else the rows were not computed here, but given
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
    if store.subtasks is not None:
        lines.append(f"subtasks     {len(set(store.subtasks))}")
    for t, checkpoint in enumerate(about["checkpoints"]):
        for direction in store.directions:
            norms = store.norms(t, direction)
            norms = norms[norms.isfinite()]
            lines.append(
                f"checkpoint {t} step {checkpoint['step']}, learning rate {checkpoint['learning_rate']:.3g}, "
                f"{direction}: "
            )
            if not len(norms):
                lines[-1] += "no row is finite"
                continue
            lines[-1] += f"norm median {norms.median():.4g}, min {norms.min():.4g}, max {norms.max():.4g}"
            if (norms - 1).abs().max() < UNIT_TOLERANCE:
                lines[-1] += " (rows of length 1: a dot product of two is their cosine)"
    return "\n".join(lines)


def show(paths: Sequence[Path]) -> int:
    """Show and verify stores. Return 1 for damage. Raise UserError for what is no store."""
    damaged = False
    for path in paths:
        store = GradientStore.open(path)
        problems = store.verify()
        # Checksums first: a summary of damaged files would mislead or crash.
        lines = problems or [store_summary(store), "verified: every checksum is right"]
        print("\n".join(lines))
        damaged |= bool(problems)
    return 1 if damaged else 0


def import_files(arguments: argparse.Namespace) -> int:
    """Make a store of another project's files, and show it."""
    options = ImportOptions(
        ids=arguments.ids,
        learning_rates=arguments.learning_rates,
        direction=arguments.direction,
        subtasks=arguments.subtasks,
    )
    store = import_store(arguments.source, arguments.path, arguments.out, options)
    print(store_summary(store))
    return 0


def export_files(arguments: argparse.Namespace) -> int:
    """Write the arrays of a store as files, and name them."""
    names = export_numpy(GradientStore.open(arguments.store), arguments.out)
    print("\n".join(str(arguments.out / name) for name in names))
    return 0


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers; write 0.001,0.0005") from error


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gtp-exp-store", description=DESCRIPTION, epilog=EPILOG, **_AS_TYPED
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shown = commands.add_parser("show", help="show stores and verify every checksum (also without the word)")
    shown.add_argument("path", nargs="+", type=Path, metavar="STORE", help="folder of a store")
    shown.set_defaults(run=lambda arguments: show(arguments.path))

    told = "make a store of gradients that LESS, bergson or your own code has written"
    imported = commands.add_parser("import", help=told, description=f"{told}.", epilog=IMPORTS, **_AS_TYPED)
    imported.add_argument(
        "--from", required=True, choices=sorted(READERS), dest="source", help="what wrote the files"
    )
    imported.add_argument(
        "path", nargs="+", type=Path, metavar="PATH", help="one for each checkpoint, in order"
    )
    imported.add_argument(
        "out", type=Path, metavar="OUT", help="folder of the store, which does not exist yet"
    )
    imported.add_argument(
        "--ids", type=Path, metavar="FILE", help="ids of the rows; without, they are row-0, row-1, ..."
    )
    imported.add_argument(
        "--learning-rates",
        type=_rates,
        metavar="A,B,...",
        help="mean learning rate before each checkpoint, its weight; without, all weigh the same",
    )
    imported.add_argument(
        "--direction",
        choices=DIRECTIONS,
        help="what the rows are: plain gradients (sgd), or after Adam's or LESS's formula; "
        "without, what LESS's folder tells (-sgd, -adam), else sgd",
    )
    imported.add_argument(
        "--subtasks", metavar="FILE|N", help="of a target: the label of each row, or a number of equal groups"
    )
    imported.set_defaults(run=import_files)

    told = "write the arrays of a store as .npy files"
    exported = commands.add_parser("export", help=told, description=f"{told}, with ids.json beside them.")
    exported.add_argument("--to", required=True, choices=["numpy"], help="the form of the files")
    exported.add_argument("store", type=Path, metavar="STORE", help="folder of a store")
    exported.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the files, which does not exist yet"
    )
    exported.set_defaults(run=export_files)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says. Return 1 for damage, 2 for input that cannot be used."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        words.insert(0, "show")
    arguments = _parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        place = Path(getattr(arguments, "out", None) or ".")
        print(f"gtp-exp-store: {storage_fault(error, place) or error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
