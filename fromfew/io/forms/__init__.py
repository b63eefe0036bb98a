"""One file per form in which other tools keep what fromfew calls a concept."""
