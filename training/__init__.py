"""The long-tailed training recipe around `fastwhiten`, run from a checkout: ``python -m training``.

The recipe follows arXiv 2112.05958 and its successor arXiv 2408.17197: a whitening layer between
the pooled features and the linear classifier, and logit margins. It is a reimplementation from the
papers' abstracts and public reviews; what they leave open is a named option here, and no number of
theirs is claimed to be reproduced.

Where to find what: `commands` (a module per command, by its name), `config` (a file per section),
`data`, `samplers`, `losses`, `models`; `engine` trains, `evaluation` measures, `runs` writes, reads
and continues run folders, `report` is what a person sees; `stage2`, `export`, `presets`.
"""
