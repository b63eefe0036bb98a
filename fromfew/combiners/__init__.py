"""One way of joining concepts, one file; the file's name is the combiner's name."""
