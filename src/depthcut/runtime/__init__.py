"""The base of the package: what every other part may import, and what imports none of them."""
