"""The files that a point leaves on disk, and how to read them."""
