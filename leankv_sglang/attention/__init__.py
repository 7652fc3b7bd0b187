"""The attention backend, the read rule it follows, and the thresholds of its rows."""
