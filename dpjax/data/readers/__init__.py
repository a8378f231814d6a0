"""One file per layout of a raw set; each reads it into Radiographs."""
