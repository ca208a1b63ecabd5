"""Benchmarks and the samples they run on."""
