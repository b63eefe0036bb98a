"""Frozen text-to-image models behind one face; with ``io/`` the only package that imports diffusers."""
