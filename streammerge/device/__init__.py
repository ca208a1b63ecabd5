"""Merging and quantizing on a torch device: the same bytes. ``placement`` and ``choice`` import no torch."""
