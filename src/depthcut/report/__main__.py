"""`python -m depthcut.report outputs/NAME`: the table of a study, and its CSV beside the records."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from depthcut import complaints
from depthcut.report import table


def main() -> None:
    """Print the table of a study and write ``NAME/table.csv``."""
    parser = argparse.ArgumentParser(prog="python -m depthcut.report", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of a study, such as outputs/main")
    study: Path = parser.parse_args().study
    if not study.is_dir():
        raise ValueError(f"no study at {study}; `python run.py name=...` makes one under outputs/")
    rows, unfinished = table.of_folder(study)
    if not rows:
        raise ValueError(f"{study} holds no finished record ({len(unfinished)} unfinished)")
    out = Console()
    out.print(table.of_study(rows, f"{study}: {len(rows)} finished, {len(unfinished)} not"))
    table.write_csv(rows, study / "table.csv")
    out.print(f"csv: {study / 'table.csv'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(complaints.guard(main))
