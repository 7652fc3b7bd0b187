"""LeanKV: compressed KV-cache pages beneath SGLang's radix tree."""
