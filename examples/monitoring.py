"""What the cache holds, once a second: the figures that Prometheus gets with ``--enable-metrics``."""

import time

import requests

while True:
    figures = requests.get("http://127.0.0.1:30000/server_info", timeout=10).json()["internal_states"][0]["leankv"]
    used = 1 - figures["blocks_free"] / figures["blocks_total"]
    print(f"{figures['tokens_held']:>9,} tokens held, {figures['ratio']:.2f} times 16 bits, {used:.0%} of the blocks")
    time.sleep(1)
