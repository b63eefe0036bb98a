"""Public helpers for testing methods, parts and backbones, here and in plug-ins."""
