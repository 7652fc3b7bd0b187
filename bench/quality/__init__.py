"""The evaluation harness: quality of a compressed KV cache next to its physical bytes. ``python -m bench.quality``.

A Hugging Face model runs over packed sequences (``packed``) with its attention either exact over 16-bit K/V or by our
codec and read rule, through the code that serves (``caches``). Tasks (``tasks``) turn that into rows.
"""
