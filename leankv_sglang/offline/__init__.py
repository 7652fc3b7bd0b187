"""A Hugging Face model over our caches without a server, for calibration and evaluation: same ops, same read rule."""
