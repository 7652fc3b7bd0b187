"""``python -m bench.quality``."""

from bench.quality.cli import main

main()
