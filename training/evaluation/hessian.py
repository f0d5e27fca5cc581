"""The Hessian of softmax cross-entropy in the linear classifier's weight, and its condition.

For logits z = W x, p = softmax(z), the Hessian in W is H = E[(diag p - p p^T) (x) x x^T], of size
K D x K D, whatever the labels. It is always singular: adding one vector to the rows of all classes
changes nothing. So the condition number is that of the spectrum without its null space, which is
known: rows that are equal over the classes, and directions in which no feature lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg, eigsh
from torch import Tensor

from training.evaluation.features import condition_number

EXACT_SIZE = 1024
"""Up to this order the eigenvalues are computed from the whole matrix, beyond by Lanczos."""


def classifier_hessian(features: Tensor, logits: Tensor) -> Tensor:
    """The whole Hessian of the mean cross-entropy in the classifier's weight.

    Args:
        features: x, [N, D].
        logits: z, [N, K].

    Returns:
        float64 [K * D, K * D]; entry (k * D + i, l * D + j) belongs to W[k, i] and W[l, j].

    Example:
        >>> classifier_hessian(torch.ones(1, 1), torch.zeros(1, 2)).tolist()
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    x = features.double()  # [N, D]
    p = logits.double().softmax(1)  # [N, K]
    count, classes = p.shape
    size = x.shape[1]
    hessian = x.new_zeros(classes, size, classes, size)
    for k in range(classes):
        for j in range(k + 1):
            weight = p[:, k] * (float(k == j) - p[:, j]) / count  # [N]
            block = x.T @ (weight[:, None] * x)  # [D, D], symmetric
            hessian[k, :, j] = block
            hessian[j, :, k] = block
    return hessian.reshape(classes * size, classes * size)


def hessian_condition(features: Tensor, logits: Tensor, exact_size: int = EXACT_SIZE) -> float:
    """Condition number of the classifier's Hessian on the complement of its null space.

    Args:
        features: x, [N, D].
        logits: z, [N, K].
        exact_size: Up to this order of the reduced matrix the whole spectrum is computed; beyond,
            the ends of it, by Lanczos, the lower one on the inverse (preconditioned conjugate
            gradients).

    Returns:
        At least 1; infinity if the curvature vanishes to rounding outside the null space, as where
        all predictions are certain. NaN if all features are 0.
    """
    problem = _reduce(features, logits)
    if problem.order == 0:
        return math.nan
    if not (problem.p * (1 - problem.p)).any():
        return math.inf  # every prediction is certain to the last bit: no curvature at all
    if problem.order <= exact_size:
        return condition_number(torch.linalg.eigvalsh(_reduced_hessian(problem)))
    return _lanczos_condition(problem)


@dataclass(frozen=True)
class _Reduced:
    """The problem in coordinates without the null space.

    Attributes:
        x: Features in the basis of their row space, float64 [N, R].
        p: Probabilities, float64 [N, K].
        basis: Orthonormal columns that sum to zero over the classes, float64 [K, K - 1].
    """

    x: Tensor
    p: Tensor
    basis: Tensor

    @property
    def order(self) -> int:
        """(K - 1) * R."""
        return self.basis.shape[1] * self.x.shape[1]

    def times(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Reduced Hessian times a vector [(K - 1) * R]."""
        v = torch.from_numpy(vector.reshape(self.basis.shape[1], -1))  # [K - 1, R]
        u = self.x @ (self.basis @ v).T  # [N, K]
        s = self.p * (u - (self.p * u).sum(1, keepdim=True))  # [N, K]
        return (self.basis.T @ (s.T @ self.x / len(self.x))).numpy().ravel()


def _reduce(features: Tensor, logits: Tensor) -> _Reduced:
    x = features.double()
    _, s, v = torch.linalg.svd(x, full_matrices=False)
    rank = int((s > max(x.shape) * torch.finfo(torch.float64).eps * s.max()).sum())
    classes = logits.shape[1]
    # The right singular vectors of the row of ones: all but the first sum to zero.
    basis = torch.linalg.svd(x.new_ones(1, classes))[2][1:].T  # [K, K - 1]
    return _Reduced(x @ v[:rank].T, logits.double().softmax(1), basis)


def _reduced_hessian(problem: _Reduced) -> Tensor:
    """The Hessian on the complement of its null space, float64 [(K - 1) * R, (K - 1) * R]."""
    hessian = classifier_hessian(problem.x, problem.p.log())  # softmax(log p) = p
    project = torch.kron(problem.basis, torch.eye(problem.x.shape[1], dtype=torch.float64))
    return project.T @ hessian @ project


def _lanczos_condition(problem: _Reduced) -> float:
    """Both ends of the spectrum by Lanczos."""
    shape = (problem.order, problem.order)
    hessian = LinearOperator(shape, matvec=problem.times, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(problem.order)  # the same on every call
    largest = eigsh(hessian, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    zero = problem.order * np.finfo(np.float64).eps * largest
    precondition = _kronecker_inverse(problem, zero)

    def solve(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        solution, failed = cg(hessian, vector, rtol=1e-9, maxiter=2000, M=precondition)
        if failed or not np.isfinite(solution).all():
            raise _Singular
        return solution

    inverse = LinearOperator(shape, matvec=solve, dtype=np.float64)
    try:
        top = eigsh(inverse, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[0]
    except _Singular:
        return math.inf  # conjugate gradients do not converge: singular to rounding
    smallest = 1.0 / top
    return largest / smallest if smallest > zero else math.inf


class _Singular(Exception):
    """A system of equations had no solution to the accuracy asked for."""


def _kronecker_inverse(problem: _Reduced, zero: float) -> LinearOperator:
    """Inverse of E[diag p - p p^T] (x) E[x x^T], which H is if p and x are independent."""
    count = len(problem.x)
    p, basis = problem.p, problem.basis
    classes = basis.T @ (torch.diag(p.mean(0)) - p.T @ p / count) @ basis  # [K - 1, K - 1]
    moments = problem.x.square().mean(0)  # [R], E[x x^T] is diagonal in this basis
    values, vectors = torch.linalg.eigh(classes)
    scale = (values[:, None] * moments).clamp_min(zero)  # [K - 1, R]

    def apply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        v = torch.from_numpy(vector.reshape(len(values), -1))  # [K - 1, R]
        return (vectors @ ((vectors.T @ v) / scale)).numpy().ravel()

    shape = (problem.order, problem.order)
    return LinearOperator(shape, matvec=apply, dtype=np.float64)
