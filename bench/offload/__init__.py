"""What pages beyond the device cost and save."""
