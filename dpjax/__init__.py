"""Deep Pneumonia (Wei et al., arXiv 2207.11393) in JAX and Flax."""

__version__ = '0.1.0'
