"""Every place where a seam of SGLang does not reach: one module per upstream target, with its version and reason.

Each module has ``install()`` and ``problem()``; the latter returns a sentence when the target no longer looks as
expected or the patch did not take, and None when all is well.
"""

SGLANG_VERSION = "0.5.23"
"""The release every patch was written against."""
