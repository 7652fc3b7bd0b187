"""Who holds how much: the ledger of pages in units of memory, SGLang's allocator over it, and its admission budget."""
