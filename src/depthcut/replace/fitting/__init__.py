"""How replacements are fitted."""
