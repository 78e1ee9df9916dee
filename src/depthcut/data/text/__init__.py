"""Text files and how they become documents."""
