"""Narrower layers."""
