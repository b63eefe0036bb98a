"""Bricks shared by several methods, one per file; the file's name is the part's kind."""
