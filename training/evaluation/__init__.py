"""Diagnostics of a long-tailed classifier: its features, its batches, its gradients, its Hessian.

The quantities are those that the abstracts and public reviews of arXiv 2112.05958 name; where they
give no formula, the formula is ours and stands in the function's docstring.
"""

from training.evaluation.batches import (
    batch_covariances,
    covariance_fluctuation,
    mean_distinct_classes,
    relative_distance,
)
from training.evaluation.features import (
    condition_number,
    correlation_matrix,
    covariance_matrix,
    effective_rank,
    gaussian_entropy,
    mean_abs_off_diagonal,
    second_moment_condition,
    singular_values,
    spectral_entropy,
)
from training.evaluation.gradients import class_gradients, mean_abs_cosine, weight_norms
from training.evaluation.hessian import classifier_hessian, hessian_condition

__all__ = [
    "batch_covariances",
    "class_gradients",
    "classifier_hessian",
    "condition_number",
    "correlation_matrix",
    "covariance_fluctuation",
    "covariance_matrix",
    "effective_rank",
    "gaussian_entropy",
    "hessian_condition",
    "mean_abs_cosine",
    "mean_abs_off_diagonal",
    "mean_distinct_classes",
    "relative_distance",
    "second_moment_condition",
    "singular_values",
    "spectral_entropy",
    "weight_norms",
]
