"""Radiographs: readers, the prepared set, augmentation, the stream."""
