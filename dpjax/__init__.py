"""Deep Pneumonia (Wei et al., arXiv 2207.11393) in JAX and Flax."""
