"""A Hugging Face model over our caches without a server, for calibration and evaluation: same ops, same read rule, and
on a CPU the same matrix products.
"""

from leankv_sglang.environment import keep_rows_alike

keep_rows_alike()
