"""Forward passes that metrics share."""
