"""Fitting of replacements."""
