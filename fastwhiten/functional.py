"""Public functions: they validate, choose the layout, the side and the backend, and call a side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import backends, distributed, sides, validation
from .backends import reference
from .function import run
from .layout import as_rows_or_planes, channels_back, channels_second, row_weights
from .matrix_functions import MatrixPower, SymmetricEigh, batched, inverse_factor
from .precision import own_precision
from .sides import Batch, Options, Whitened
from .statistics import Statistics
from .validation import Backend, Kind, Shrinkage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def make_options(
    caller: str,
    kind: str,
    groups: int,
    eps: float,
    shrinkage: str | float | None,
    statistics_dtype: torch.dtype | None,
    backend: str,
    batch_weight: float = 1.0,
) -> Options:
    """Validate the settings that do not depend on the input.

    Raises:
        ValueError: a setting outside its range; the text names the range.
    """
    if backend != "auto" and backend not in backends.BACKENDS:
        raise ValueError(
            f"{caller}: expected backend to be one of {['auto', *backends.BACKENDS]}, "
            f"got {backend!r}"
        )
    return Options(
        groups,
        validation.check_batch_weight(caller, batch_weight),
        validation.check_eps(caller, eps),
        validation.check_kind(caller, kind),
        validation.check_statistics_dtype(caller, statistics_dtype),
        validation.check_shrinkage(caller, shrinkage),
        backend,
        caller,
    )


def batch_whiten(
    x: Tensor,
    options: Options,
    sample_weight: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    running_covariance: Tensor | None = None,
    need: str | None = None,
    start: Tensor | None = None,
    process_group: ProcessGroup | str | None = None,
    channel_dim: int = 1,
) -> Whitened:
    """Whiten with batch statistics.

    The engine of :func:`whiten` and of the module in training mode.

    Args:
        x: ``[N, C, *spatial]``, or with C in dimension ``channel_dim``; so is ``y``.
        options: settings from :func:`make_options`.
        sample_weight: ``[N]`` or ``[N, *spatial]``.
        gamma: ``[C]`` scale.
        beta: ``[C]`` shift.
        running_covariance: ``[G, D, D]``, blended in with weight ``1 - batch_weight``.
        need: ``"covariance"`` or ``"matrix"`` if that is wanted on the sample side too.
        start: ``[G, D, D]`` of the last step's ``basis``, where an iterative eigensolver begins.
        process_group: as in :func:`whiten`.
        channel_dim: as in :func:`whiten`.
    """
    group = distributed.resolve(options.caller, process_group)
    min_rows = 2 if group is None else 0
    validation.check_input(
        options.caller, x, options.groups, min_rows=min_rows, channel_dim=channel_dim
    )
    x = channels_second(x, channel_dim)
    if sample_weight is not None:
        validation.check_sample_weight(
            options.caller, sample_weight, x, may_be_zero=group is not None
        )
    options = options._replace(backend=backends.choose(options.backend, x.device))
    with own_precision(x):
        if group is None:
            side, slots = sides.choose(x, options), None
        else:
            side, slots = sides.choose_over(group, x, sample_weight, options)
        if side == "sample" and (sample_weight is not None or (slots and slots.weighted)):
            options = options._replace(double_precision=True)
        dtype = reference.accumulation_dtype(x.dtype, options.double_precision)
        p = header = None
        if slots is not None:
            p = distributed.gather_weights(sample_weight, x, dtype, slots)
        elif group is not None:
            p, header = distributed.weigh_rows(sample_weight, x, dtype)
        elif sample_weight is not None:
            p = row_weights(sample_weight, x, dtype)
        view = as_rows_or_planes(x)
        shared = (group, header, slots)
        batch = Batch(x, view, p, gamma, beta, running_covariance, start, need, options, *shared)
        result = sides.whiten_on(side, batch)
    return result._replace(y=channels_back(result.y, channel_dim))


def whiten(
    x: Tensor,
    *,
    channel_dim: int = 1,
    kind: Kind = "zca",
    groups: int = 1,
    eps: float = 1e-3,
    sample_weight: Tensor | None = None,
    shrinkage: Shrinkage = None,
    process_group: ProcessGroup | str | None = None,
    backend: Backend = "auto",
    statistics_dtype: torch.dtype | None = None,
) -> Tensor:
    """Whiten a batch with its own mean and covariance, exactly, with an exact gradient.

    With ``Xc`` the centred rows of one group and ``S = Xc^T diag(p) Xc + eps I = U diag(l) U^T``,
    returns ``Xc U diag(l^-1/2) U^T`` (ZCA), ``Xc U diag(l^-1/2)`` (PCA) or ``Xc L^-T`` with
    ``S = L L^T`` (Cholesky). Where a group has at least as many channels as rows, ZCA works on the
    rows' Gram matrix instead, with the same result.

    Args:
        x: ``[N, C]`` or ``[N, C, *spatial]``, contiguous or channels_last (read in place; anything
            else is copied), float16, bfloat16, float32 or float64, with at least two rows
            ``N * spatial``.
        channel_dim: where the C channels are, 1 or another dimension, negative ones counted from
            the end; the statistics are those over all others. Tokens ``[N, L, C]`` take -1, and
            contiguous ones are read in place.
        kind: ``"zca"``, ``"pca"`` or ``"cholesky"``.
        groups: number of channel groups, whitened independently; divides C.
        eps: > 0, added to the eigenvalues, so in the units of ``x`` squared. Rounding leaves errors
            of about ``D * 6e-8`` times the largest eigenvalue in a float32 covariance: a direction
            in which rows vary by less is whitened as noise unless eps is larger, and Cholesky gives
            NaN where that leaves ``S`` not positive definite. For features of large scale raise eps
            (1e-6 times the largest eigenvalue is enough up to D = 16), use ``shrinkage``, or
            ``statistics_dtype=torch.float64``.
        sample_weight: ``[N]`` or ``[N, *spatial]`` (the shape of ``x`` without its channels), >= 0,
            any scale (normalised to sum 1): 0 for padding tokens, say. None weighs rows equally. No
            gradient flows into it.
        shrinkage: None, ``"oas"``, ``"ledoit-wolf"``, or a fixed intensity in [0, 1]; moves the
            eigenvalues towards their mean. The intensity is a constant for the gradient.
        process_group: None uses the rows of this process alone. ``"world"`` (the default group of
            ``torch.distributed``) or a ProcessGroup uses the rows of all its processes, as one
            process holding them would: one all-reduce forward and one backward (one more forward
            for ``"ledoit-wolf"``, and for ZCA of CPU tensors). Every process has to call;
            batch sizes may differ and be 0, with at least two rows in all.
        backend: ``"auto"`` takes the best that serves the device of ``x``. ``"native"`` (compiled
            C++, and CUDA kernels where they were built), ``"triton"`` (an NVIDIA GPU of compute
            capability 8.0 or later, and the package triton) and ``"reference"`` (plain PyTorch, any
            device) insist on one. ``python -m fastwhiten.info`` says what can be used here. The
            environment variable ``FASTWHITEN_BACKEND``, read at import, names another than
            ``"auto"`` for the calls that do not insist.
        statistics_dtype: ``torch.float64`` computes everything inside in double precision; by
            default float32, and float64 for float64 input.

    Returns:
        Tensor of the shape and dtype of ``x``. A non-finite value in a group makes that group's
        output NaN; so does, for Cholesky alone, a finite batch that rounding makes indefinite (see
        eps).

    Raises:
        TypeError: ``x`` or ``sample_weight`` is not a floating-point tensor.
        ValueError: wrong shape, fewer than two rows, an option outside its range, a backend that
            does not serve the device of ``x``, or a process group that is not initialised or does
            not contain this process.
        RuntimeError: the backend is not installed or built here, or its kernels were built from
            other sources; the text says what is missing.

    Note:
        With a process group every process backpropagates its own loss, and the gradient is that of
        the sum of all losses, as in ``nn.SyncBatchNorm``. Where all processes together have no more
        rows than channels, ZCA of CPU tensors gathers the rows, and every process whitens them all.
        Elsewhere the D x D covariance is decomposed on every process: to know the number of all
        rows would wait for the GPU.

    Note:
        The gradient never divides by an eigenvalue gap for ZCA and Cholesky. PCA's is undefined
        where eigenvalues coincide: a tied block then uses the symmetric part of the inner product
        of output and gradient.

    Example:
        >>> import torch, fastwhiten
        >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)) @ torch.randn(8, 8)
        >>> y = fastwhiten.whiten(x, eps=1e-6)
        >>> torch.allclose(y.T @ y / 256, torch.eye(8), atol=1e-3)
        True
    """
    options = make_options("whiten", kind, groups, eps, shrinkage, statistics_dtype, backend)
    return batch_whiten(
        x, options, sample_weight, process_group=process_group, channel_dim=channel_dim
    ).y


def batch_statistics(
    x: Tensor,
    *,
    channel_dim: int = 1,
    groups: int = 1,
    sample_weight: Tensor | None = None,
    backend: Backend = "auto",
    statistics_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of a batch, differentiably.

    Args:
        x: ``[N, C]`` or ``[N, C, *spatial]``, as in :func:`whiten`; one row is enough.
        channel_dim: as in :func:`whiten`.
        groups: number of channel groups; divides C.
        sample_weight: as in :func:`whiten`.
        backend: as in :func:`whiten`.
        statistics_dtype: as in :func:`whiten`.

    Returns:
        ``mean`` ``[C]`` and ``covariance`` ``[G, D, D]`` (divisor M, no eps), float32, or float64
        for float64 input or on request. Means are subtracted before squaring.

    Raises:
        TypeError: ``x`` or ``sample_weight`` is not a floating-point tensor.
        ValueError: wrong shape or an empty batch.

    Example:
        >>> import torch, fastwhiten
        >>> mean, covariance = fastwhiten.batch_statistics(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        >>> mean.tolist(), covariance.tolist()
        ([1.0, 3.0], [[[1.0, 2.0], [2.0, 4.0]]])
    """
    caller = "batch_statistics"
    validation.check_input(caller, x, groups, min_rows=1, channel_dim=channel_dim)
    double = validation.check_statistics_dtype(caller, statistics_dtype)
    x = channels_second(x, channel_dim)
    p = None
    if sample_weight is not None:
        validation.check_sample_weight(caller, sample_weight, x)
        p = row_weights(sample_weight, x, reference.accumulation_dtype(x.dtype, double))
    with own_precision(x):
        mean, covariance = run(
            Statistics, as_rows_or_planes(x), p, groups, double, backends.choose(backend, x.device)
        )
    return mean, covariance


def symmetric_eigh(
    a: Tensor, *, start: Tensor | None = None, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the eigensystem of symmetric matrices, with a gradient that stays finite at ties.

    ``a = U diag(l) U^T``, for any number of matrices in one call. On the CPU up to order 128 by
    Householder's reduction and implicit QL (64 in float64), up to 1024 by divide and conquer, above
    by LAPACK; on a GPU by Jacobi's method up to order 128 (64 in float64, and in Triton's kernels),
    which does not wait for the device and can be captured in a CUDA graph, above by the library
    (``python -m fastwhiten.info`` says which). In exact float32 or float64: neither TF32 nor
    autocast reaches inside.

    Args:
        a: ``[..., D, D]`` float32 or float64, symmetric (the lower triangle is read).
        start: orthogonal matrices near the eigenvectors, like ``a`` in shape and dtype: those of
            a matrix that has changed little since. The CUDA kernels' eigensolver (Jacobi's
            method, up to D = 128, in float64 to 64) begins there and takes fewer sweeps, with the
            same result to rounding; it ignores one that is not orthogonal to rounding. Other
            solvers ignore any: the CPU's are direct, and Triton's begins anew, for with a start
            its kernel would need local memory. No gradient flows into it.
        backend: as in :func:`whiten`.

    Returns:
        Eigenvalues ``[..., D]``, ascending, and eigenvectors ``[..., D, D]`` in columns. In every
        eigenvector the component of largest magnitude is positive. A matrix with a non-finite
        entry gives NaN; nothing is raised.

    Raises:
        TypeError: not a float32 or float64 tensor.
        ValueError: not of shape ``[..., D, D]``.

    Note:
        The gradient is ``U [diag(dl) + (U^T dU)_ij / (l_j - l_i)] U^T``. With respect to the
        eigenvectors of equal eigenvalues (a relative gap of at most ``64 D`` rounding errors) it
        does not exist; their pair contributes zero, which is right for every function of the
        eigenspaces. Powers need no gap: :func:`matrix_power`.

    Example:
        Eigenvectors of a matrix that drifts, each from those before:

        >>> import torch, fastwhiten
        >>> a, start = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), None
        >>> for _ in range(3):
        ...     eigenvalues, start = fastwhiten.symmetric_eigh(a, start=start)
        ...     a = 0.9 * a + 0.1 * torch.eye(2)
        >>> [round(v, 5) for v in eigenvalues.tolist()]
        [1.0, 2.62]
    """
    start = validation.check_start("symmetric_eigh", start, a)
    with own_precision(a):
        eigenvalues, vectors = run(SymmetricEigh, a, start, backends.choose(backend, a.device))
    return eigenvalues, vectors


def symmetric_eigh_sweeps(
    a: Tensor, *, start: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Count the sweeps that :func:`symmetric_eigh` takes, to measure what a ``start`` saves.

    Args:
        a: ``[..., D, D]``, as in :func:`symmetric_eigh`.
        start: as in :func:`symmetric_eigh`.
        backend: as in :func:`whiten`.

    Returns:
        ``[...]`` int32: rounds over all pairs of rows; 0 for a matrix that is not finite, -1 where
        the solver takes no start (Triton's, those of the CPU, and all above D = 128, in float64
        above 64).

    Raises:
        TypeError: not a float32 or float64 tensor.
        ValueError: not of shape ``[..., D, D]``.

    Example:
        >>> import torch, fastwhiten
        >>> fastwhiten.symmetric_eigh_sweeps(torch.eye(3), backend="native").item()
        -1
    """
    start = validation.check_start("symmetric_eigh_sweeps", start, a)
    stages = backends.get(backends.choose(backend, a.device))
    sweeps: Tensor = stages.eigh_sweeps(
        batched(a.detach()), None if start is None else batched(start)
    )
    return sweeps.reshape(a.shape[:-2])


def matrix_power(
    a: Tensor, p: float, *, eps: float = 0.0, start: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Return a real power of symmetric positive (semi)definite matrices, with an exact gradient.

    ``(a + eps I)^p = U diag(l^p) U^T``: roots (1/2), inverse roots (-1/2, -1/4 as in Shampoo),
    inverses (-1), any other. The gradient weighs pairs of eigenvectors by divided differences of
    ``l^p`` (Daleckii and Krein 1965), evaluated without cancellation: eigenvalues may be close or
    equal.

    Args:
        a: ``[..., D, D]`` float32 or float64, symmetric (gradients are, too).
        p: any finite number.
        eps: >= 0, added to the diagonal, in the units of ``a``; eigenvalues of the sum are taken to
            be at least eps, so that rounding makes none negative.
        start: eigenvectors to begin from, as in :func:`symmetric_eigh`.
        backend: as in :func:`whiten`.

    Returns:
        ``[..., D, D]`` in the dtype of ``a``; NaN where ``a`` is not finite. With eps 0, a singular
        ``a`` has no power below 0 (infinite or NaN) and no finite gradient below 1.

    Raises:
        TypeError: not a float32 or float64 tensor, or ``p`` is no number.
        ValueError: wrong shape, or ``p`` or eps outside its range.
        NotImplementedError: a third derivative of a power other than 1/2 and -1/2.

    Note:
        The second derivative sums over triples of eigenvalues, in ``D^3`` operations and slices of
        32 MB; those of 1/2 and -1/2, of any order, are products of matrices.

    Example:
        >>> import torch, fastwhiten
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> quarter = fastwhiten.matrix_power(a, -1 / 4)
        >>> torch.allclose(torch.linalg.matrix_power(quarter, 4) @ a, torch.eye(2), atol=1e-5)
        True
    """
    start = validation.check_start("matrix_power", start, a)
    p, eps = validation.check_power("matrix_power", p, eps)
    name = backends.choose(backend, a.device)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    with own_precision(a):
        shifted = reference.symmetrize(a) + eps * identity
        power: Tensor = run(MatrixPower, shifted, start, p, eps, name)[0]
        return power


def whitening_matrix(
    covariance: Tensor, *, kind: Kind = "zca", eps: float = 1e-3, backend: Backend = "auto"
) -> Tensor:
    """Return ``W`` with ``(x - mean) @ W`` white, for covariances of any origin, differentiably.

    Args:
        covariance: ``[..., D, D]`` float32 or float64, symmetric positive semidefinite.
        kind: ``"zca"`` (symmetric ``S^-1/2``), ``"pca"`` (``U diag(l^-1/2)``, ascending) or
            ``"cholesky"`` (``L^-T``).
        eps: > 0, added to the diagonal.
        backend: as in :func:`whiten`.

    Returns:
        ``[..., D, D]`` in the dtype of ``covariance``; NaN where it is not finite, or not positive
        definite (Cholesky).

    Raises:
        TypeError: not a float32 or float64 tensor.
        ValueError: wrong shape, kind or eps.

    Example:
        >>> import torch, fastwhiten
        >>> w = fastwhiten.whitening_matrix(torch.diag(torch.tensor([4.0, 1.0])), eps=1e-9)
        >>> [round(v, 4) for v in w.diagonal().tolist()]
        [0.5, 1.0]
    """
    caller = "whitening_matrix"
    validation.check_symmetric(caller, covariance, "covariance")
    code, eps = validation.check_kind(caller, kind), validation.check_eps(caller, eps)
    name = backends.choose(backend, covariance.device)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    with own_precision(covariance):
        return inverse_factor(reference.symmetrize(covariance) + eps * identity, code, eps, name)
