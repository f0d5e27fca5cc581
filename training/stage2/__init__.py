"""Decoupled training: another classifier on the frozen features of a finished run.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020. All
four methods end in the run's own kind of model, a linear classifier behind the whitening layer, so
that a checkpoint of stage 2 is evaluated and exported as any other.

To add a method: a function in `methods`, a line in its table and one in ``config.stage2``.
"""
