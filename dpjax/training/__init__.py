"""Both stages' training: objectives, steps, the loop, checkpoints."""
