"""`python -m depthcut.report.methods`: generates the README's table of methods from the method files."""

import ast
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
GROUPS = ("metric", "prune", "replace", "heal", "eval", "log")
START, END = "<!-- methods: made by `python -m depthcut.report.methods` -->\n", "<!-- /methods -->"


def methods_table() -> str:
    """Return one row per method: its name on the command line, and the first line of its module docstring."""
    rows = ["| choice | description |", "|---|---|"]
    for group in GROUPS:
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            rows.append(f"| `{group}={path.stem}` | {module_summary(group, path)} |")
    return "\n".join(rows) + "\n"


def module_summary(group: str, path: Path) -> str:
    """Return the first docstring line of the module that a yaml names."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    target: str = (config if "_target_" in config else config[path.stem])["_target_"]
    module = Path(*target.split(".")[:-1]).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse((ROOT / "src" / module).read_text(encoding="utf-8")))
    assert docstring, f"{module} has no first line ({group}={path.stem})"
    return docstring.splitlines()[0]


def update_readme(readme: str) -> str:
    """Return ``readme`` with an updated table."""
    before, _, rest = readme.partition(START)
    return before + START + methods_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(
            update_readme(text) != text
            and "README.md: the table of methods is out of date: run python -m depthcut.report.methods"
        )
    path.write_text(update_readme(text), encoding="utf-8")
