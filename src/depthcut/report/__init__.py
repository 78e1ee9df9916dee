"""Reports: records of a study -> a table (`python -m depthcut.report outputs/NAME`)."""
