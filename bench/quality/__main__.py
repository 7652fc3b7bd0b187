"""``python -m bench.quality``."""

from bench.common.command import run
from bench.quality.cli import main

if __name__ == "__main__":
    run(main)
