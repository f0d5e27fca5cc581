"""The long-tailed training recipe around `fastwhiten`, run from a checkout: ``python -m training``.

The recipe follows arXiv 2112.05958 and its successor arXiv 2408.17197: a whitening layer between
the pooled features and the linear classifier, and logit margins. It is a reimplementation from the
papers' abstracts and public reviews; what they leave open is a named option here, and no number of
theirs is claimed to be reproduced.

Where to find what: `config` (typed configuration), `cli`, `train` (one run from start to end),
`data` and `samplers`, `models`, `losses`, `optim`, `loop` (the training step and epoch), `evaluate`
and `metrics`, `diagnostics`, `checkpoint`, and `plots`, `report`, `progress` (what a person sees).
"""
