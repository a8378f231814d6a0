"""From a raw set to batches: readers, the prepared set, the stream."""
