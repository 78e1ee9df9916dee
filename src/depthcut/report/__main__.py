"""Show studies in the terminal, as one HTML file, as figures and tables, or on localhost.

depthcut report outputs/A                      progress, and a table of the finished points
depthcut report outputs/A outputs/B -o r.html  one self-contained page, to send or for an appendix
depthcut report outputs/A --format pdf         outputs/A/figures/*.pdf for a paper (png, svg; csv, md: tables)
depthcut report --live outputs                 the page on localhost, which follows running sweeps

`python -m depthcut.report` is the same, and `serve` the same as `--live`.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from depthcut.report import cells, state, study, table
from depthcut.runtime import failures
from depthcut.runtime.arguments import OneLineParser
from depthcut.runtime.errors import UserError

FORMATS = ("html", "png", "svg", "pdf", "csv", "md")


def main(words: Sequence[str]) -> None:
    """Show the studies named on the command line."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # in many small fits, threads only wait for each other
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=cells.ERRORS)
    if words[:1] == ["serve"]:
        return serve_studies(words[1:])
    if "--live" in words:
        return serve_studies([word for word in words if word != "--live"])
    options = build_parser().parse_args(words)
    check_output(options)
    found = study.read_studies(options.study)
    if options.format or options.output:
        return write_report(found, options)
    return show_studies(found, options.study)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, except for ``serve``."""
    head, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="depthcut report",
        description=head,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", type=Path, nargs="+", help="folder of a study (outputs/main) or of several studies (outputs)")
    where = "file for the page or table, or folder for the figures (default: in the study's folder)"
    add("-o", "--output", type=Path, help=where)
    add("--format", choices=FORMATS, help="output format (default: the extension of OUTPUT)")
    add("--live", action="store_true", help="serve the page on localhost (--port N) and follow running sweeps")
    add("--title", default="", help="heading of the page (default: the names of the studies)")
    return parser


def check_output(options: argparse.Namespace) -> None:
    """Refuse a file name without a known extension, or with another one than ``--format``.

    Raises:
        UserError: in either case.
    """
    from depthcut.report import files

    if options.output is None:
        return
    suffix = options.output.suffix
    if options.format is None and suffix[1:] not in files.FILE_NAMES:
        figures = f"; for figures: --format {suffix[1:]} -o FOLDER" if suffix[1:] in FORMATS else ""
        raise UserError(f"-o {options.output}: the name must end in .html, .csv or .md{figures}")
    if options.format is not None and suffix[1:] != options.format and suffix[1:] in FORMATS:
        raise UserError(f"-o {options.output} --format {options.format}: the extension and --format differ")


def home(studies: list[Path]) -> Path:
    """Return the default output folder: that of the study, or the common parent of several studies."""
    return Path(os.path.commonpath([path.resolve() for path in studies])) if len(studies) > 1 else studies[0]


def show_studies(found: study.Studies, studies: list[Path]) -> None:
    """Print the progress and a table of the finished points; for one study, also write ``NAME/table.csv``."""
    out = Console()
    if not found.states and not found.points:
        raise UserError(f"{', '.join(map(str, studies))}: no points found; create some with `depthcut -m name=...`")
    for line in state.state_lines(found):
        out.print(line, highlight=False)
    if not found.points:
        return
    left = sum(found.states.values()) - found.states["done"]
    title = f"{', '.join(map(str, studies))}: {len(found.points)} finished, {left} unfinished"
    out.print(title, highlight=False, markup=False, soft_wrap=True)
    out.print(table.study_table(found.records))
    if len(studies) == 1:
        path = studies[0] / "table.csv"
        table.write_study_csv(found.records, path)
        out.print(f"csv: {path}", highlight=False, markup=False, soft_wrap=True)


def write_report(found: study.Studies, options: argparse.Namespace) -> None:
    """Write the page, the figures or a table, and print the paths."""
    from depthcut.report import files

    if not found.points:
        raise UserError(f"{', '.join(map(str, options.study))}: no finished record to show ({found.words})")
    wanted = options.format or options.output.suffix[1:]
    title = options.title or ", ".join(path.resolve().name for path in options.study)
    for path in files.write_output(found, wanted, options.output, title, home(options.study)):
        Console().print(str(path), highlight=False, markup=False, soft_wrap=True)


def serve_studies(arguments: Sequence[str]) -> None:
    """Serve the page of the given studies until Ctrl-C."""
    from depthcut.report import serve

    parser = OneLineParser(prog="depthcut report --live", description=serve.__doc__)
    parser.add_argument(
        "study", type=Path, nargs="+", help="folder of a study (outputs/main) or of several studies (outputs)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 picks a free one (default: 8000)")
    options = parser.parse_args(arguments)
    serve.serve_page(options.study, options.port)


if __name__ == "__main__":
    sys.exit(failures.run_guarded(partial(main, sys.argv[1:])))
