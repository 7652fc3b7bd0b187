"""The live page: what the cache holds, read between a scheduler's steps and shown by the server's own HTTP app."""
