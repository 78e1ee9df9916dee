"""``python -m depthcut``: the same as the command ``depthcut``."""

import sys

from depthcut.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
