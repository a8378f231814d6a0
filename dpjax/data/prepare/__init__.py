"""From the records of a source to a prepared set."""
