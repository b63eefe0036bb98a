"""Metrics: one number per picture, never a mean; every one has a name, a version and a source."""
