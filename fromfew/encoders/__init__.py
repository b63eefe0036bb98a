"""Frozen image encoders: pictures to features, one interface for all."""

from fromfew.encoders.base import Eye, open_eye, squares

__all__ = ["Eye", "open_eye", "squares"]
