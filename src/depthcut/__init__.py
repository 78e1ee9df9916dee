"""depthcut: cut layers out of a large language model, heal it, and map accuracy against pruning fraction."""

from importlib.metadata import PackageNotFoundError, version

from depthcut.model.checkpoint.exported import load_exported as load
from depthcut.model.surgery.drafting import draft_model as draft

__all__ = ["draft", "load"]

try:
    __version__ = version("depthcut")
except PackageNotFoundError:  # a checkout that is on sys.path, but not installed
    __version__ = "0+unknown"
