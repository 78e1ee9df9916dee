"""Studies: the points in a folder of outputs."""
