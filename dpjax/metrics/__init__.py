"""Scores of predictions, and how sure they are. No JAX, no Flax."""
