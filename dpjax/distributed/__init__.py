"""How a step runs on devices, and how the processes of a job work together."""
