"""Cutting a model's width: what goes as one, what it is worth, when it goes, and the narrower model that is left."""
