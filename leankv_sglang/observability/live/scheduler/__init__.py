"""In the scheduler's process: what the page and the probe ask for, read a little at a time between steps."""
