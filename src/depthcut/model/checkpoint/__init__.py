"""Checkpoints on disk: read, checked, quantised, sharded and exported."""
