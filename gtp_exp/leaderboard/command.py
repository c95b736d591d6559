"""The command line of the leaderboard."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gtp_exp.data.benchmark import Mean
from gtp_exp.errors import UserError
from gtp_exp.files import write_whole
from gtp_exp.leaderboard import date_lm, exports
from gtp_exp.leaderboard.choices import with_choice_judged
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.further import further_tests
from gtp_exp.leaderboard.latex import latex
from gtp_exp.leaderboard.page.examples import examples_by_row
from gtp_exp.leaderboard.page.picture import pictures
from gtp_exp.leaderboard.page.render import render_page
from gtp_exp.leaderboard.records import load
from gtp_exp.leaderboard.scoring import check_metric, score
from gtp_exp.leaderboard.space import write_space
from gtp_exp.leaderboard.validated import with_validation_as_test


def main(argv: Sequence[str] | None = None) -> int:
    """Write the leaderboard that the arguments ask for and print it; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        print(build_boards(arguments))
    except UserError as error:
        print(f"gtp-exp-leaderboard: {error}", file=sys.stderr)
        return 2
    return 0


def build_boards(arguments: argparse.Namespace) -> str:
    """Runs -> tables -> files in `out`; returns what to print."""
    loaded = load(arguments.runs)
    if not arguments.choices and arguments.date_lm is None:
        loaded = replace(loaded, runs=tuple(with_validation_as_test(run) for run in loaded.runs))
    if arguments.choices or not any(run.record.metrics for run in loaded.complete):
        loaded = replace(loaded, runs=tuple(with_choice_judged(run) for run in loaded.runs))
    now = datetime.now(UTC)
    if arguments.date_lm is not None:
        submission = date_lm.Submission(
            selector=arguments.date_lm_selector,
            method=arguments.date_lm_method or arguments.date_lm_selector,
            method_type=arguments.date_lm_type,
            link=arguments.date_lm_link,
            model_size=arguments.date_lm_size,
        )
        written = date_lm.write(loaded.complete, submission, arguments.date_lm, now)
        return "\n".join([written[1].read_text(encoding="utf-8"), *map(str, written)])
    further = () if arguments.choices else further_tests(loaded.complete)
    if arguments.metric is not None:
        check_metric([*loaded.complete, *further], arguments.metric)
    grouped = group([*loaded.complete, *further], beside=arguments.beside)
    mean = None if arguments.mean is None else Mean(arguments.mean)
    boards = [
        score(table, metric=arguments.metric, baseline=arguments.baseline, mean=mean)
        for table in grouped.tables
    ]
    chosen = examples_by_row([board for board in boards if not board.further], per_row=arguments.examples)

    text = exports.markdown(boards, loaded, arguments.baseline)
    html = render_page(boards, grouped, loaded, chosen, baseline=arguments.baseline, now=now)
    document = exports.json_document(boards, loaded, metric=arguments.metric, baseline=arguments.baseline)
    curve = pictures(boards, arguments.baseline) if arguments.picture else {}
    files = {
        "leaderboard.md": text,
        "leaderboard.csv": exports.csv_table(boards),
        "leaderboard.json": document,
        "index.html": html,
        **({"leaderboard.tex": latex(boards, arguments.baseline)} if arguments.latex else {}),
        **curve,
    }
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if not (arguments.out / "leaderboard.json").exists():
            _check_free(arguments.out, files)
        for name, content in files.items():
            write_whole(arguments.out / name, [content])  # an open page never reloads half a file
    except OSError as error:
        raise UserError(f"cannot write to --out {arguments.out}: {error.strerror}") from error
    if arguments.space is not None:
        page = {name: files[name] for name in ("index.html", "leaderboard.json")}
        write_space(arguments.space, arguments.space_title, page)
    told = ["", f"Page: {(arguments.out / 'index.html').resolve().as_uri()}"]
    if arguments.picture and not curve:
        told.append("No picture: a curve needs a selector that has chosen two numbers of rows or more.")
    if earlier := [name for name in _ON_REQUEST if name not in files and (arguments.out / name).exists()]:
        told.append(
            f"{', '.join(earlier)} in {arguments.out}: left by an earlier command, and not of these tables."
        )
    if arguments.wandb:
        from gtp_exp.leaderboard.tracked import report  # brings wandb

        told.append(report(boards, html, arguments.out))
    return "\n".join([exports.plain(boards, loaded, arguments.baseline), *told])


# What only some commands write into --out.
_ON_REQUEST = ("leaderboard.tex", "curve-light.svg", "curve-dark.svg")


def _check_free(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder that holds no leaderboard, and files that one would replace."""
    if taken := [name for name in names if (folder / name).exists()]:
        raise UserError(f"--out {folder} holds {taken[0]}, which is no leaderboard's; give another folder")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gtp-exp-leaderboard",
        description="Compare finished runs: tables with intervals, and one page to look at.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="folders of runs, searched at any depth"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/leaderboard"), help="default: %(default)s")
    parser.add_argument(
        "--metric",
        help="what ranks, averaged over tasks, or `headline` for each task's own; default: as the answers of "
        "the benchmark ask, which the table says",
    )
    parser.add_argument(
        "--mean",
        choices=[mean.value for mean in Mean],
        help="what several tasks are averaged over: test rows, so that larger tasks count more, or tasks; "
        "default: as the benchmark asks (`benchmark.mean`), else rows",
    )
    parser.add_argument(
        "--choices",
        action="store_true",
        help="judge what was chosen by the pool's hidden labels instead of the tuned models; the default for "
        "runs until=selection",
    )
    parser.add_argument(
        "--baseline",
        default="random",
        metavar="SELECTOR",
        help="what others are compared to; default: %(default)s. Of one that stands in several rows, one of "
        'them by its settings: "gtp [train.loss=token_mean]"',
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting, or a group of them, that may differ within a table: rows then tell its values "
        "apart, and are still never averaged over them (repeatable)",
    )
    parser.add_argument(
        "--examples",
        type=_count,
        default=40,
        metavar="N",
        help="chosen examples shown per row; default: %(default)s",
    )
    _add_exports(parser)
    form = parser.add_argument_group(
        "row of the DATE-LM leaderboard", "written instead of the tables, from the runs of date_lm_finetune"
    )
    form.add_argument("--date-lm", type=Path, metavar="FOLDER", help="where row.json and metadata.json go")
    form.add_argument(
        "--date-lm-selector", default="gtp", metavar="SELECTOR", help="whose row; default: %(default)s"
    )
    form.add_argument("--date-lm-method", metavar="NAME", help="its name there; default: the selector's")
    form.add_argument(
        "--date-lm-type",
        type=_method_type,
        metavar="TYPE",
        help=f"one of {', '.join(kind.value for kind in date_lm.MethodType)}; Gradient where gradients were "
        "collected",
    )
    form.add_argument("--date-lm-link", default="", metavar="URL", help="paper, code or contact; required")
    form.add_argument("--date-lm-size", metavar="SIZE", help="of the model, such as 8B; read off its name")
    return parser


def _add_exports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latex", action="store_true", help="write leaderboard.tex too: tables with intervals, for booktabs"
    )
    parser.add_argument(
        "--picture",
        action="store_true",
        help="write curve-light.svg and curve-dark.svg too: the first metric over budgets, with intervals",
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="log the page and the ranking to W&B, too, as a run beside those that it ranks; offline unless "
        "WANDB_MODE=online and a key are there",
    )
    parser.add_argument(
        "--space",
        type=Path,
        metavar="FOLDER",
        help="write the page as a static Hugging Face Space into a new or empty folder",
    )
    parser.add_argument(
        "--space-title", default="Leaderboard of data selectors", metavar="TITLE", help="default: %(default)s"
    )


def _method_type(text: str) -> date_lm.MethodType:
    kinds = {kind.value.lower(): kind for kind in date_lm.MethodType}
    if text.lower() not in kinds:
        choices = ", ".join(kind.value for kind in date_lm.MethodType)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {choices}")
    return kinds[text.lower()]


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of zero or more")
    return int(text)
