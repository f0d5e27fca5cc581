"""What one would use instead of `fastwhiten`: plain-PyTorch whitening, written as people write it.

These are honest baselines for ``python -m training train --whitening eager`` and for the
benchmarks: ordinary differentiable PyTorch, gradient by autograd, one decomposition per group and
call. Nothing of `fastwhiten`'s own stages is used. They differ in one function only, the *solver*,
which maps the regularised covariance and the centred rows to whitened rows:

* eager: ZCA by ``torch.linalg.eigh``;
* Cholesky: ``Y = Xc L^-T`` by a triangular solve;
* IterNorm: Newton's iteration (Huang et al., CVPR 2019), which whitens approximately.

Notation: N samples, C channels, G groups, D = C / G, M rows = N * spatial. All covariances are
biased (divisor M), and eps is added to the diagonal before the decomposition. Half-precision inputs
are computed in float32.

Limits, on purpose, because that is how the peers behave: autograd through ``eigh`` divides by
eigenvalue gaps (NaN or wrong when eigenvalues coincide), Cholesky raises on a non-finite
covariance, and evaluation decomposes the running covariance anew on every call. IterNorm alone
averages whitening matrices, as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "CholeskyWhitening",
    "EagerWhitening",
    "IterNorm",
    "cholesky_whiten",
    "eager_whiten",
    "iternorm_whiten",
]

Solver = Callable[[Tensor, Tensor], Tensor]
"""(regularised covariance [G, D, D], centred rows [G, M, D]) -> whitened rows [G, M, D]."""


def eager_whiten(x: Tensor, groups: int = 1, eps: float = 1e-3) -> Tensor:
    """ZCA whitening of a batch by ``torch.linalg.eigh`` and autograd.

    Y = Xc U diag(1/sqrt(l)) U^T with Xc^T Xc / M + eps I = U diag(l) U^T (Huang et al.,
    "Decorrelated Batch Normalization", CVPR 2018).

    Args:
        x: Batch ``[N, C, *spatial]``, floating point, at least one row (one row gives zeros).
        groups: Number G of channel groups whitened on their own; divides C.
        eps: Added to the covariance's diagonal, in the units of x squared; > 0.

    Returns:
        The whitened batch, in x's shape and dtype.

    Raises:
        TypeError: If x is not a floating-point tensor.
        ValueError: If x has fewer than two dimensions or no rows, or if groups does not divide C.

    Example:
        >>> import torch
        >>> from training.models.peers import eager_whiten
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(256, 8, generator=generator) @ torch.ones(8, 8).tril()
        >>> y = eager_whiten(x, groups=2, eps=1e-5)
        >>> covariance = y[:, :4].T @ y[:, :4] / 256
        >>> bool(torch.allclose(covariance, torch.eye(4), atol=1e-3))
        True
    """
    return _whiten_batch(x, groups, eps, _solve_zca, "eager_whiten")


def cholesky_whiten(x: Tensor, groups: int = 1, eps: float = 1e-3) -> Tensor:
    """Cholesky whitening of a batch by ``torch.linalg.cholesky``, a triangular solve and autograd.

    Y = Xc L^-T with Xc^T Xc / M + eps I = L L^T (Siarohin et al., "Whitening and Coloring Batch
    Transform for GANs", ICLR 2019). Arguments, result and errors are those of `eager_whiten`; a
    covariance that is not positive definite (or not finite) raises ``torch.linalg.LinAlgError``.

    Example:
        >>> import torch
        >>> from training.models.peers import cholesky_whiten
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(256, 4, generator=generator) @ torch.ones(4, 4).tril()
        >>> y = cholesky_whiten(x, eps=1e-5)
        >>> bool(torch.allclose(y.T @ y / 256, torch.eye(4), atol=1e-3))
        True
    """
    return _whiten_batch(x, groups, eps, _solve_cholesky, "cholesky_whiten")


def iternorm_whiten(x: Tensor, groups: int = 1, eps: float = 1e-3, iterations: int = 5) -> Tensor:
    """Approximate ZCA whitening of a batch by Newton's iteration and autograd.

    With S = Xc^T Xc / M + eps I and S_N = S / trace(S):
    P_0 = I,  P_k = (3 P_{k-1} - P_{k-1}^3 S_N) / 2,  Y = Xc P_T / sqrt(trace(S))
    (Huang et al., "Iterative Normalization", CVPR 2019, Algorithm 1). P_T tends to S_N^{-1/2}; at
    T = 5 directions with small eigenvalues stay under-whitened, so the result is not white. More
    steps are no remedy: rounding errors grow once the iteration has converged.

    Args:
        x: Batch ``[N, C, *spatial]``, floating point, at least one row.
        groups: Number G of channel groups whitened on their own; divides C.
        eps: Added to the covariance's diagonal, in the units of x squared; > 0.
        iterations: Number T of Newton steps; >= 1. The paper recommends 5.

    Returns:
        The approximately whitened batch, in x's shape and dtype.

    Raises:
        TypeError: If x is not a floating-point tensor.
        ValueError: If the shape, groups or iterations are out of range.

    Example:
        >>> import torch
        >>> from training.models.peers import eager_whiten, iternorm_whiten
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(256, 4, generator=generator) @ torch.ones(4, 4).tril()
        >>> y = iternorm_whiten(x.double(), iterations=8)
        >>> bool(torch.allclose(y, eager_whiten(x.double()), atol=1e-2))
        True
    """
    _check_iterations(iterations, "iternorm_whiten")

    def solve(covariance: Tensor, centred: Tensor) -> Tensor:
        return _map_rows(_newton_matrix(covariance, iterations), centred)

    return _whiten_batch(x, groups, eps, solve, "iternorm_whiten")


class _RunningWhitening(nn.Module):
    """Batch whitening in training, running statistics in evaluation; subclasses choose the solver.

    Buffers: ``running_mean`` [C] starts at zero, ``running_cov`` [G, D, D] at the identity, both
    updated in training as ``(1 - momentum) * running + momentum * batch``; ``num_batches_tracked``
    counts the updates. While ``track_running_stats`` is False, training leaves them alone.
    """

    _averaged = "running_cov"  # the buffer beside the mean
    running_mean: Tensor
    running_cov: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        groups: int = 1,
        eps: float = 1e-3,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Check the options and create the buffers."""
        super().__init__()
        name = type(self).__name__
        if num_features < 1 or groups < 1 or num_features % groups:
            raise ValueError(
                f"{name}: expected groups to divide num_features, got num_features={num_features} "
                f"and groups={groups}; choose a divisor of {num_features}."
            )
        if not eps > 0 or not 0 < momentum <= 1:
            raise ValueError(
                f"{name}: expected eps > 0 and 0 < momentum <= 1, got eps={eps} and "
                f"momentum={momentum}; use for instance eps=1e-3 and momentum=0.1."
            )
        self.num_features = num_features
        self.groups = groups
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = True
        size = num_features // groups
        factory: Any = {"device": device, "dtype": dtype}
        identity = torch.eye(size, **factory)
        self.register_buffer("running_mean", torch.zeros(num_features, **factory))  # [C]
        self.register_buffer(self._averaged, identity.repeat(groups, 1, 1))  # [G, D, D]
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))  # []

    def _solve(self, covariance: Tensor, centred: Tensor) -> Tensor:
        raise NotImplementedError

    def _train(self, covariance: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Batch covariance [G, D, D], centred rows [G, M, D] -> whitened ones, what is averaged."""
        return self._solve(_regularised(covariance, self.eps), centred), covariance

    def _evaluate(self, centred: Tensor) -> Tensor:
        """Centred rows -> whitened rows, [G, M, D] each."""
        covariance = self.running_cov.to(centred.dtype)  # [G, D, D]
        return self._solve(_regularised(covariance, self.eps), centred)

    def forward(self, x: Tensor) -> Tensor:
        """Whiten x with the batch's statistics (training) or the running ones (evaluation).

        Args:
            x: Batch ``[N, num_features, *spatial]``, floating point; at least two rows in training.

        Returns:
            The whitened batch, in x's shape, dtype and memory format.

        Raises:
            TypeError: If x is not a floating-point tensor.
            ValueError: If the shape is wrong, or if there is one row in training mode.
        """
        y = self._whiten(x)
        return y.contiguous() if x.is_contiguous() else y  # as rows give it: channels last

    def _whiten(self, x: Tensor) -> Tensor:
        name = type(self).__name__
        rows = _rows(x, self.groups, name, least=1 if self.training else 0)  # [M, C]
        if rows.shape[1] != self.num_features:
            raise ValueError(
                f"{name}: expected x of shape [N, {self.num_features}, ...], got "
                f"{tuple(x.shape)}; the channels are dimension 1."
            )
        if not self.training:
            centred = _grouped(rows - self.running_mean.to(rows.dtype), self.groups)  # [G, M, D]
            return _restore(self._evaluate(centred), x)
        if rows.shape[0] < 2:
            raise ValueError(
                f"{name}: expected at least two rows in training mode, got {tuple(x.shape)}; "
                "use a larger batch, or call eval() to use the running statistics."
            )
        centred, mean, covariance = _statistics(rows, self.groups)
        whitened, statistic = self._train(covariance, centred)
        if self.track_running_stats:
            self._update(mean.detach(), statistic.detach())
        return _restore(whitened, x)

    @torch.no_grad()
    def _update(self, mean: Tensor, statistic: Tensor) -> None:
        averaged: Tensor = getattr(self, self._averaged)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        averaged.lerp_(statistic.to(averaged.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"{self.num_features}, groups={self.groups}, eps={self.eps}, momentum={self.momentum}"
        )


class EagerWhitening(_RunningWhitening):
    """`eager_whiten` as a layer with running mean and running covariance (ZCA).

    Args:
        num_features: Number C of channels (dimension 1 of the input).
        groups: Number G of channel groups whitened on their own; divides C.
        eps: Added to the covariance's diagonal before the decomposition; > 0.
        momentum: Weight of the new batch in the running statistics, in (0, 1].
        device, dtype: Of the buffers.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from training.models.peers import EagerWhitening
        >>> layer = EagerWhitening(64, groups=4)
        >>> layer(torch.randn(128, 64)).shape
        torch.Size([128, 64])
    """

    def _solve(self, covariance: Tensor, centred: Tensor) -> Tensor:
        return _solve_zca(covariance, centred)


class CholeskyWhitening(_RunningWhitening):
    """`cholesky_whiten` as a layer; arguments, buffers and errors are those of `EagerWhitening`.

    Example:
        >>> import torch
        >>> from training.models.peers import CholeskyWhitening
        >>> CholeskyWhitening(8).eval()(torch.randn(1, 8)).shape
        torch.Size([1, 8])
    """

    def _solve(self, covariance: Tensor, centred: Tensor) -> Tensor:
        return _solve_cholesky(covariance, centred)


class IterNorm(_RunningWhitening):
    """`iternorm_whiten` as a layer; arguments and errors are those of `EagerWhitening`.

    Evaluation is the authors': the average of the batches' whitening matrices (``running_matrix``
    [G, D, D], in place of ``running_cov``). Newton's steps on an averaged covariance would give
    another one.

    Args:
        num_features: Number C of channels (dimension 1 of the input).
        groups: Number G of channel groups whitened on their own; divides C.
        eps: Added to the covariance's diagonal; > 0.
        momentum: Weight of the new batch in the running statistics, in (0, 1].
        iterations: Number T of Newton steps; >= 1.
        device, dtype: Of the buffers.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from training.models.peers import IterNorm
        >>> IterNorm(8, iterations=5)(torch.randn(16, 8, 4, 4)).shape
        torch.Size([16, 8, 4, 4])
    """

    _averaged = "running_matrix"
    running_matrix: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        groups: int = 1,
        eps: float = 1e-3,
        momentum: float = 0.1,
        iterations: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Check the options and create the buffers."""
        factory: Any = {"device": device, "dtype": dtype}
        super().__init__(num_features, groups=groups, eps=eps, momentum=momentum, **factory)
        self.iterations = iterations
        _check_iterations(iterations, "IterNorm")

    def _train(self, covariance: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        matrix = _newton_matrix(_regularised(covariance, self.eps), self.iterations)
        return _map_rows(matrix, centred), matrix

    def _evaluate(self, centred: Tensor) -> Tensor:
        return _map_rows(self.running_matrix.to(centred.dtype), centred)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{super().extra_repr()}, iterations={self.iterations}"


def _whiten_batch(x: Tensor, groups: int, eps: float, solve: Solver, name: str) -> Tensor:
    centred, _, covariance = _statistics(_rows(x, groups, name), groups)
    return _restore(solve(_regularised(covariance, eps), centred), x)


def _rows(x: Tensor, groups: int, name: str, least: int = 1) -> Tensor:
    """Check x and return its rows [M, C] in the dtype of the computation."""
    if not x.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor, got {x.dtype}; convert x with x.float()."
        )
    if x.dim() < 2 or x.numel() < least or x.shape[1] == 0:
        raise ValueError(
            f"{name}: expected x of shape [N, C, ...] with at least one row, got {tuple(x.shape)}; "
            "add the missing dimension or the missing rows."
        )
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(
            f"{name}: expected groups to divide the {x.shape[1]} channels, got "
            f"groups={groups}; choose a divisor."
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    positions = math.prod(x.shape[2:])
    return x if x.dim() == 2 else x.movedim(1, -1).reshape(x.shape[0] * positions, x.shape[1])


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """[M, C] -> [G, M, D]."""
    return rows.reshape(rows.shape[0], groups, rows.shape[1] // groups).transpose(0, 1)


def _restore(grouped: Tensor, like: Tensor) -> Tensor:
    """[G, M, D] -> the shape and dtype of ``like`` [N, C, *spatial]."""
    rows = grouped.transpose(0, 1).reshape(-1, like.shape[1]).to(like.dtype)  # [M, C]
    if like.dim() == 2:
        return rows
    return rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)


def _statistics(rows: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """[M, C] -> centred rows [G, M, D], mean [C], biased covariance [G, D, D]."""
    mean = rows.mean(0)  # [C]
    centred = _grouped(rows - mean, groups)  # [G, M, D]
    # A covariance in half precision is not usable: autocast must not reach this product.
    with torch.autocast(rows.device.type, enabled=False):
        covariance = centred.mT @ centred / rows.shape[0]  # [G, D, D]
    return centred, mean, covariance


def _regularised(covariance: Tensor, eps: float) -> Tensor:
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return covariance + eps * identity  # [G, D, D]


def _solve_zca(covariance: Tensor, centred: Tensor) -> Tensor:
    with torch.autocast(centred.device.type, enabled=False):
        eigenvalues, basis = torch.linalg.eigh(covariance)  # [G, D], [G, D, D]
        matrix = (basis * eigenvalues.rsqrt().unsqueeze(-2)) @ basis.mT  # [G, D, D]
    return _map_rows(matrix, centred)


def _solve_cholesky(covariance: Tensor, centred: Tensor) -> Tensor:
    lower = torch.linalg.cholesky(covariance)  # [G, D, D]
    whitened: Tensor = torch.linalg.solve_triangular(lower, centred.mT, upper=False).mT  # [G, M, D]
    return whitened


def _check_iterations(iterations: int, name: str) -> None:
    if iterations < 1:
        raise ValueError(
            f"{name}: expected iterations >= 1, got {iterations}; the paper recommends 5."
        )


def _newton_matrix(covariance: Tensor, iterations: int) -> Tensor:
    """Regularised covariance -> whitening matrix, [G, D, D] each."""
    with torch.autocast(covariance.device.type, enabled=False):
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]  # [G, 1, 1]
        normalised = covariance / trace  # [G, D, D], eigenvalues in (0, 1]: the iteration converges
        root = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        root = root.expand_as(covariance)  # [G, D, D], P_0
        for _ in range(iterations):
            root = 1.5 * root - 0.5 * (root @ root @ root @ normalised)
        return root * trace.rsqrt()


def _map_rows(matrix: Tensor, centred: Tensor) -> Tensor:
    """Matrices [G, D, D], rows [G, M, D] -> [G, M, D], in the rows' dtype."""
    with torch.autocast(centred.device.type, enabled=False):
        mapped: Tensor = centred @ matrix
    return mapped
