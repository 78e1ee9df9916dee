"""Timing on CPUs and GPUs."""
