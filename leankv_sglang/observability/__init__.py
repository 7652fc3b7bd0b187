"""What the pool and requests report."""
