"""Runs: everything that needs the whole run instead of one group."""
