"""A model on disk: its config, and the checks that need no weight."""
