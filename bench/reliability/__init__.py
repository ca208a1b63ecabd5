"""What goes wrong in real life, made to happen on purpose: python -m bench.reliability."""
