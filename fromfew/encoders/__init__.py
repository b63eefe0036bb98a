"""Frozen image encoders: pictures to features, one interface for all."""

from fromfew.encoders.base import Eye, look_at, open_eye, squares

__all__ = ["Eye", "look_at", "open_eye", "squares"]
