"""Run the command gtp-exp-export: the chosen rows for other trainers, and the tuned model as one model."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from gtp_exp.errors import UserError, first_line
from gtp_exp.export.formats import FORMATS
from gtp_exp.launch.faults import storage_fault


def main(argv: Sequence[str] | None = None) -> int:
    """Write what the arguments ask for, and say where; return the exit status."""
    arguments = _parser().parse_args(argv)
    warnings.filterwarnings("ignore", module=r"(torch|peft|transformers)\b.*")  # they would hide our words
    try:
        _check(arguments)
        if arguments.format is not None:
            from gtp_exp.export.rows import export_rows

            print(export_rows(arguments.run, arguments.format, arguments.out))
        if arguments.merge is not None:
            from gtp_exp.export.merge import merge

            merge(arguments.run, arguments.merge, trust_remote_code=arguments.trust_remote_code)
            print(f"wrote the model, for AutoModelForCausalLM and AutoTokenizer: {arguments.merge}")
    except UserError as error:
        print(f"gtp-exp-export: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        out = arguments.merge or arguments.out or arguments.run
        print(f"gtp-exp-export: {storage_fault(error, out) or first_line(error)}", file=sys.stderr)
        return 2
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for arguments that do not fit together."""
    if arguments.format is None and arguments.out is None and arguments.merge is None:
        raise UserError("nothing to do: give --format FORMAT --out FOLDER, or --merge OUT")
    if (arguments.format is None) != (arguments.out is None):
        missing = "--out FOLDER" if arguments.out is None else f"--format {'|'.join(FORMATS)}"
        raise UserError(f"--format and --out belong together; add {missing}")
    if arguments.format is not None and arguments.format not in FORMATS:
        raise UserError(f"--format {arguments.format} is unknown; give one of {', '.join(FORMATS)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gtp-exp-export",
        description="Take a run's chosen rows to another trainer, and its tuned model away as one model.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as outputs/runs/NAME")
    parser.add_argument("--format", metavar="FORMAT", help=f"who reads the rows: {', '.join(FORMATS)}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="new folder for the rows")
    parser.add_argument(
        "--merge", type=Path, metavar="OUT", help="new folder for the tuned model, adapter and base in one"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that a base model brings along, as model.trust_remote_code did in the run",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
