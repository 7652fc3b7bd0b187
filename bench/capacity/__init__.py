"""Tokens held at equal bytes, and its parts."""
