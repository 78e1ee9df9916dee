"""depthcut: cut layers out of a large language model, heal it, and map accuracy against pruning fraction."""

from importlib.metadata import PackageNotFoundError, version

from depthcut.drafting import draft
from depthcut.saved import load

__all__ = ["draft", "load"]

try:
    __version__ = version("depthcut")
except PackageNotFoundError:  # a checkout that is on sys.path, but not installed
    __version__ = "0+unknown"
