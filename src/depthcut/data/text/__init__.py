"""Text files, documents and tokens."""
