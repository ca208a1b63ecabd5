"""Merging and quantizing on a torch device: the same bytes. ``choice`` imports no torch."""
