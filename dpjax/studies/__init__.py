"""Studies: many runs of one config, and a table of them."""
