"""The tests' processes import as much as a run does, and leave as little garbage."""

import gc

gc.set_threshold(700, 10, 1000)  # as in run.py
