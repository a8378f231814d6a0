"""Rates of input, step and end to end, and PyTorch beside ours."""
