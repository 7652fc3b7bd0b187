"""Other systems' compressed KV caches on our model and texts, in an environment of their own (make rivals)."""
