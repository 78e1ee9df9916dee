"""Forward passes shared by metrics."""
