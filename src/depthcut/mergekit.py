"""The command `python -m depthcut.mergekit`: see :mod:`depthcut.study.mergekit`."""

import sys

from depthcut.runtime import failures
from depthcut.study.mergekit import main

if __name__ == "__main__":
    sys.exit(failures.run_guarded(main))
