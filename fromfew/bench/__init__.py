"""The bench: every method on the same ground; tasks are data, records are only ever added to."""
