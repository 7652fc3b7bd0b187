"""Who holds how much: SGLang's pool and allocator over compressed pages, and the ledger of what every page costs.

The life of a logical page, what does each step, and what it may assume:

1. **open** (``allocator`` -> ``Ledger.open``): the page was free; it reserves its worst case, a unit a token, so the
   blocks of its commit are there whatever it turns out to need. Its tokens are raw, in the open page of its request's
   row.
2. **commit** (``attention.read_rule`` -> ``commit_pages``; ``commit_log``): the prefill that wrote its last token, or
   the forward behind the decode step that did (``LeanKVPool.drain``), packs one record a layer. From here on the
   records are what every reader sees; their blocks are counted on the device.
3. **settle** (``CommitLog.settle`` -> ``Ledger.settle``): the counts have arrived, at once on a CPU and one forward
   later from a GPU; the page is trued up to what it really takes. Only a settled page may be cut or swapped.
4. **cut** (``tree.shrink`` -> ``LeanKVPool.cut``): its tail goes, first the near part (trim), then the refinement
   (demote). The price falls at once; the device carries it out before the next forward (``deferred``), since forwards
   already launched still read the record. No page that a running request reads near is cut (``Ledger.lock_near``).
5. **swap** (``tree.paged_component`` -> ``LeanKVPool.swap``): a cut page of the tree takes the fuller record that a
   request has computed from the same tokens, and keeps its id.
6. **close** (``allocator`` -> ``LeanKVPool.free``): its units are free at once, its blocks with the next forward. The
   same id may be opened again before that; ``Ledger.epoch`` tells its lives apart.

``sizing`` says what a token costs before there is a pool, ``prefill_budget`` what a prefill pass may admit.
"""
