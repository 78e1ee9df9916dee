"""``python -m depthcut.mergekit``, the same as ``depthcut mergekit``: see :mod:`depthcut.study.mergekit`."""

import sys
from functools import partial

from depthcut.runtime import failures
from depthcut.study.mergekit import main

if __name__ == "__main__":
    sys.exit(failures.run_guarded(partial(main, sys.argv[1:])))
