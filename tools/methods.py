"""Write the README's table of methods from the method files: python tools/methods.py; with --check, only compare."""

import sys
from pathlib import Path

from depthcut.cli import help_text

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- methods: made by `python tools/methods.py` -->\n", "<!-- /methods -->"


def methods_table() -> str:
    """Return one row per method: its name on the command line, and the first line of its module docstring."""
    rows = ["| choice | description |", "|---|---|"]
    for group in help_text.METHOD_GROUPS:
        for name in help_text.choice_names(group):
            rows.append(f"| `{group}={name}` | {help_text.choice_summary(group, name)} |")
    return "\n".join(rows) + "\n"


def update_readme(readme: str) -> str:
    """Return ``readme`` with an updated table."""
    before, _, rest = readme.partition(START)
    return before + START + methods_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(
            update_readme(text) != text and "README.md: the table of methods is outdated; run python tools/methods.py"
        )
    README.write_text(update_readme(text), encoding="utf-8")
