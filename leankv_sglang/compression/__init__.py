"""What a page is compressed to: formats, thresholds, profiles, significance, and a request's wish."""
