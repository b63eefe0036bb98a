"""One paper, one file; the file's name is the method's name."""
