"""Servers that stand in for the hub and for W&B: they answer as the real ones do."""
