"""What the cache holds, once a second: the figures that Prometheus gets with ``--enable-metrics``.

The server (``make serve``) may be elsewhere: ``python examples/monitoring.py http://HOST:PORT``.
"""

import sys
import time

import requests

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"

while True:
    figures = requests.get(URL + "/server_info", timeout=10).json()["internal_states"][0]["leankv"]
    used = 1 - figures["blocks_free"] / figures["blocks_total"]
    print(f"{figures['tokens_held']:>9,} tokens held, {figures['ratio']:.2f} times 16 bits, {used:.0%} of the blocks")
    time.sleep(1)
