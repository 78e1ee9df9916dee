"""Lowest layer of the package: every other part may import it, and it imports none of them."""
