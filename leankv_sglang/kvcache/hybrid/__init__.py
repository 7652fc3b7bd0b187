"""Models of which some layers have a sliding window: full layers in our pages, windows raw in SGLang's own pool.

One id names both: SGLang's row holds slots of the full layers, and a table leads from those to slots of the windows.
What grows with a context is compressed; a window does not grow.
"""
