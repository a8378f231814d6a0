"""One reader for each layout in which sets come."""
