"""The long-tailed training recipe around `fastwhiten`, run from a checkout: ``python -m training``.

The recipe follows arXiv 2112.05958 and its successor arXiv 2408.17197: a whitening layer between
the pooled features and the linear classifier, and logit margins. It is a reimplementation from the
papers' abstracts and public reviews; what they leave open is a named option here, and no number of
theirs is claimed to be reproduced.

Where to find what: `config` (a file per section), `cli`, `data`, `samplers`, `losses`, `models`.
One run is `train` (start to end), `loop` and `step`, `optim`, `precision`, `ema`, `distributed`,
`resume` and `checkpoint`, `evaluate`, `tally` and `metrics`, `summary`; what a person sees is
`progress`, `plots`, `report`, `scalars`. Around runs: `runs` (reading one back), `stage2`,
`evaluate_run`, `compare`, `ablate`, `diagnostics`, `export`, `presets`.
"""
