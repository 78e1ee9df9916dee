"""A decoder in memory."""
