"""Serving at equal bytes, beside stock, and its parts."""
