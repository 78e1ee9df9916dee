"""Hydra finds launchers in this package: see the files beside it."""
