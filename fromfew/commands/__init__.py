"""The verbs of the command line, one file each, with ``run(argv) -> exit status``."""
