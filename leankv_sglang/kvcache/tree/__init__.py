"""Our part of SGLang's radix tree: nodes at true prices, pages that are trimmed before they are evicted."""
