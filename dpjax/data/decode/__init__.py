"""Image files as 8-bit grey levels."""
