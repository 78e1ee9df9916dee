"""Narrower layers: fewer heads and FFN channels."""
