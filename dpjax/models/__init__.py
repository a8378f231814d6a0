"""Backbones and the heads that learn beside them."""
