"""Hydra discovers the launchers in this package."""
