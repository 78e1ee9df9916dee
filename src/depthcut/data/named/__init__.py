"""Texts by name, for the perplexities that papers report."""
