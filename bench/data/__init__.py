"""The texts that benches read: ``python -m bench.data`` fetches them, or makes stand-ins for them."""
