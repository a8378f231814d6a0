"""From a prepared set to the batches of a step: decisions, then renders."""
