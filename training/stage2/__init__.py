"""Decoupled training: another classifier on the features of a finished run.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020. All
methods end in a model that a configuration describes, so that a checkpoint of stage 2 is evaluated
and exported as any other.

To add a method: a function in `methods`, a line in its table and one in ``config.stage2``.
"""
