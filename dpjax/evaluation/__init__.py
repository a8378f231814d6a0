"""Judging a trained classifier: scores, attention maps and the report."""
