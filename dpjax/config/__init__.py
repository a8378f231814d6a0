"""The config: its fields, how it is resolved, flags, and its record."""
