"""Overhead of the framework per point: a study of 100 points that do almost nothing, and a second pass over it.

python bench/throughput.py                 everything: some minutes
python bench/throughput.py --points 25     a quarter of it

Prints the wall time per point (except the first, which imports), the part for the point's own work (loading,
healing, evaluation), and the time of the same command when all is done. Targets: 2 s per point, 20 s for 100 points.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDY = (
    "model=pico",
    "data=files",
    "eval=[loss]",
    "heal.steps=1",
    "heal.warmup=0",
    "heal.batch=1",
    "heal.micro_batch=1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100, help="five cuts of so many seeds")
    parser.add_argument("--folder", type=Path, help="folder of the study (default: a temporary folder)")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = wanted.folder or Path(temporary)
        words = [*STUDY, *corpus(folder), "prune.layers=1,2,3,4,5", f"seed=range({wanted.points // 5})", "export=none"]
        words += [f"outputs={folder / 'outputs'}"]
        first = seconds(words)
        records = sorted(folder.glob("outputs/main/*/record.json"), key=lambda path: path.stat().st_mtime)
        ends = [path.stat().st_mtime for path in records]
        walls = [after - before for before, after in itertools.pairwise(ends)]
        work = [own(path) for path in records[1:]]
        over = [wall - each for wall, each in zip(walls, work, strict=True)]
        print(f"{len(records)} points in {first:.1f} s")
        print(f"per point: {statistics.median(walls):.2f} s, of which {statistics.median(work):.2f} s is its own work")
        print(f"framework: median {statistics.median(over):.2f} s per point, largest {max(over):.2f} s")
        print(f"second pass: {seconds(words):.1f} s")


def own(path: Path) -> float:
    """Return the seconds of a point's own work: loading, healing, evaluation."""
    return sum(value for key, value in json.loads(path.read_text()).items() if key.startswith("seconds/"))


def seconds(words: list[str]) -> float:
    """Return the seconds of the sweep."""
    start = time.monotonic()
    subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", *words], check=True, cwd=ROOT, capture_output=True)
    return time.monotonic() - start


def corpus(folder: Path) -> list[str]:
    """Write text for the three parts of the data."""
    path = folder / "corpus.jsonl"
    lines = [json.dumps({"text": f"Point {n} of the study says {n * n} again. " * 8}) for n in range(400)]
    path.write_text("\n".join(lines))
    return [f"data.{part}.paths=[{path}]" for part in ("calibration", "train", "validation")]


if __name__ == "__main__":
    main()
