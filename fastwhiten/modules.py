"""``ChannelWhitening`` (hop 1 of 5): whitening as a layer, at home where ``nn.BatchNorm`` is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import backends, distributed, validation, warm_start
from .backends import reference
from .functional import batch_whiten, make_options
from .precision import full_float32, no_autocast
from .sides import Whitened
from .sync_module import SyncModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ChannelWhitening(SyncModule):
    """Whiten channels with batch statistics in training and with running statistics in evaluation.

    In training, as :func:`fastwhiten.whiten`: the batch is centred and decorrelated exactly, and
    gradients flow through mean, covariance and eigensystem. The running statistics follow with
    ``momentum``. In evaluation the layer is an affine map whose matrix is computed once from the
    running statistics and cached until they change; it traces as plain matrix products for
    ``torch.export``.

    Args:
        num_features: C.
        groups: number of channel groups, whitened independently; divides C. Groups bound the cost
            and the number of rows needed: D = C / groups.
        kind: ``"zca"``, ``"pca"`` or ``"cholesky"``.
        eps: > 0, added to the eigenvalues.
        momentum: weight of the new value in the running statistics, in [0, 1]; None keeps the
            cumulative average.
        affine: learn a scale and a shift per channel after whitening.
        track_running_stats: False uses batch statistics in evaluation too.
        running: what evaluation uses: the ``"covariance"`` (decomposed once) or the whitening
            ``"matrix"`` averaged over batches (not for PCA, whose eigenvectors cannot be
            averaged).
        batch_weight: in (0, 1]. Below 1, training whitens with
            ``batch_weight * S_batch + (1 - batch_weight) * S_running``; the gradient flows through
            the batch's part. Damps the fluctuation of small batches, and lets the eigensolver of
            the CUDA kernels begin from the last step's eigenvectors (``last_basis``).
        shrinkage: None, ``"oas"``, ``"ledoit-wolf"``, or a fixed intensity in [0, 1]. Estimated
            intensities apply to batches in training only: the running covariance averages many
            batches. A fixed one applies always.
        process_group: whose rows training statistics are made of, as in :func:`fastwhiten.whiten`:
            None (this process's), ``"world"`` or a ProcessGroup (which PyTorch cannot pickle).
            Running statistics are then the same on every process. Not used in evaluation.
        backend: as in :func:`fastwhiten.whiten`.
        statistics_dtype: as in :func:`fastwhiten.whiten`.
        device: of parameters and buffers.
        dtype: of parameters and buffers; float32 is advised whatever the input's dtype.

    Shape:
        ``[N, C]`` or ``[N, C, *spatial]`` to the same.

    Attributes:
        weight: ``[C]`` scale, or None.
        bias: ``[C]`` shift, or None.
        running_mean: ``[C]``, starts at 0.
        running_cov: ``[G, D, D]``, biased (divisor M), starts at the identity; with
            ``running="matrix"`` it is ``running_matrix`` instead.
        num_batches_tracked: number of batches that updated the running statistics.
        last_basis: ``[G, D, D]``, the last step's eigenvectors, where ``batch_weight`` is below 1
            and D at most 128, else None; the identity where the eigensolver takes no start (on the
            CPU, and Triton's). Not in the ``state_dict``; a reset or a load forgets it.
            Set it to None if a training resumed on a GPU has to repeat every bit.

    Raises:
        ValueError: an option outside its range, or an input of the wrong shape.
        TypeError: an input that is not floating point.

    Note:
        A batch with a non-finite value gives NaN output and leaves the running statistics as they
        were, without an exception or a synchronisation, so that ``torch.amp.GradScaler`` can skip
        the step.

    Example:
        >>> import torch, fastwhiten
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(10, 32), fastwhiten.ChannelWhitening(32), torch.nn.Linear(32, 3)
        ... )
        >>> model(torch.randn(64, 10)).sum().backward()
        >>> model.eval()(torch.randn(1, 10)).shape
        torch.Size([1, 3])
    """

    running_mean: Tensor | None
    running_cov: Tensor | None
    running_matrix: Tensor | None
    num_batches_tracked: Tensor | None
    eval_matrix: Tensor | None
    last_basis: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        groups: int = 1,
        kind: str = "zca",
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = True,
        running: str = "covariance",
        batch_weight: float = 1.0,
        shrinkage: str | float | None = None,
        process_group: ProcessGroup | str | None = None,
        backend: str = "auto",
        statistics_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Validate the options and create parameters and buffers."""
        super().__init__()
        validation.check_layer(
            num_features, groups, kind, momentum, track_running_stats, running, batch_weight
        )
        self.num_features = num_features
        self.groups = groups
        self.kind = kind
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.running = running
        self.batch_weight = batch_weight
        self.shrinkage = shrinkage
        distributed.check_process_group("ChannelWhitening", process_group)
        self.process_group = process_group
        self.backend = backend
        self.statistics_dtype = statistics_dtype
        self._options = make_options(
            "ChannelWhitening",
            kind,
            groups,
            eps,
            shrinkage,
            statistics_dtype,
            backend,
            batch_weight,
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if affine:
            self.weight = nn.Parameter(torch.empty(num_features, **factory))
            self.bias = nn.Parameter(torch.empty(num_features, **factory))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self._make_buffers(factory)
        self.reset_parameters()
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _refresh_after_load
        )

    def _make_buffers(self, factory: dict[str, Any]) -> None:
        size = self.num_features // self.groups
        square = (
            torch.empty(self.groups, size, size, **factory) if self.track_running_stats else None
        )
        mean = torch.empty(self.num_features, **factory) if self.track_running_stats else None
        used, unused = ("running_cov", "running_matrix")[
            :: 1 if self.running == "covariance" else -1
        ]
        # Those that are there come first: torch.export miscounts behind one that is None.
        self.register_buffer("running_mean", mean)
        self.register_buffer(used, square)
        count = torch.tensor(0, dtype=torch.long, device=factory["device"])
        self.register_buffer("num_batches_tracked", count if self.track_running_stats else None)
        double = self._options.double_precision
        basis = warm_start.first_basis(square, self.batch_weight, self.kind, double)
        self.register_buffer("last_basis", basis, persistent=False)
        # Derived, so no state; a buffer so that it moves and traces with the module.
        self.register_buffer("eval_matrix", None, persistent=False)
        self.register_buffer(unused, None)
        self._eval_source: tuple[Any, ...] | None = None

    def reset_running_stats(self) -> None:
        """Set the running mean and the count to 0, the running covariance or matrix to identity."""
        if self.running_mean is None or self.num_batches_tracked is None:
            return
        self.running_mean.zero_()
        self.num_batches_tracked.zero_()
        square = self._running_square()
        square.copy_(
            torch.eye(square.shape[-1], device=square.device, dtype=square.dtype).expand_as(square)
        )
        self._forget_basis()

    def _forget_basis(self) -> None:
        """Let the next eigensolve begin from nothing."""
        double, basis = self._options.double_precision, self.last_basis
        if basis is not None and self.running_cov is not None:
            self.last_basis = warm_start.forget(basis, self.running_cov, double)

    def _apply(self, fn: Any, recurse: bool = True) -> ChannelWhitening:
        """Convert parameters and buffers; a basis that was rounded is orthogonal no longer."""
        before = None if self.last_basis is None else self.last_basis.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.last_basis is not None and self.last_basis.dtype != before:
            self._forget_basis()
        return self

    def reset_parameters(self) -> None:
        """Reset the running statistics, the scale to 1 and the shift to 0."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def _running_square(self) -> Tensor:
        """Return the running covariance or matrix ``[G, D, D]``."""
        square = self.running_cov if self.running == "covariance" else self.running_matrix
        assert square is not None
        return square

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Whiten ``x``.

        Args:
            x: ``[N, C]`` or ``[N, C, *spatial]``.
            sample_weight: ``[N]`` or ``[N, *spatial]`` weights of the batch statistics; not used
                in evaluation with running statistics.

        Returns:
            Tensor of the shape and dtype of ``x``.
        """
        use_batch = self.training or not self.track_running_stats
        # As in nn.SyncBatchNorm: evaluation on one process alone must not wait for the others.
        process_group = self.process_group if self.training else None
        alone = use_batch and process_group is None
        validation.check_input("ChannelWhitening", x, self.groups, min_rows=2 if alone else 0)
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"ChannelWhitening: expected x of shape [N, {self.num_features}, ...], "
                f"got {list(x.shape)}; construct the layer with num_features={x.shape[1]}"
            )
        if self.running_mean is not None and self.running_mean.device != x.device:
            raise ValueError(
                "ChannelWhitening: expected x on the device of the layer, "
                f"{self.running_mean.device}, got {x.device}; move one of them with .to(device)"
            )
        if not use_batch:
            return self._evaluate(x)
        tracking = self.training and self.track_running_stats
        result = batch_whiten(
            x,
            self._options,
            sample_weight,
            self.weight,
            self.bias,
            self._blended_in(),
            need=self.running if tracking else None,
            start=self.last_basis,
            process_group=process_group,
        )
        if tracking:
            self._update(result)
        return result.y

    def _blended_in(self) -> Tensor | None:
        """Return the running covariance that training blends in, None for none.

        A copy: the graph keeps it, and the buffer is updated in place before the backward.
        """
        if self.batch_weight == 1.0 or self.running_cov is None:
            return None
        return self.running_cov.detach().clone()

    @torch.no_grad()
    def _update(self, result: Whitened) -> None:
        """Move the running statistics towards the batch's, unless the batch was not finite."""
        assert self.running_mean is not None and self.num_batches_tracked is not None
        square = self._running_square()
        batch = result.covariance if self.running == "covariance" else result.matrix
        assert batch is not None
        # A sum is finite only if all its terms are: one flag on the device, nothing is read back
        # to the host.
        finite = torch.isfinite(result.mean.sum() + batch.sum())
        self.num_batches_tracked.add_(finite)
        if self.momentum is None:
            step = 1.0 / self.num_batches_tracked.clamp(min=1).to(result.mean.dtype)
        else:
            step = torch.full_like(result.mean[0], self.momentum)
        for running, new in ((self.running_mean, result.mean), (square, batch)):
            safe = torch.where(finite, new, running.to(new.dtype))
            running.copy_(torch.lerp(running.to(new.dtype), safe, step))
        if self.last_basis is not None and result.basis is not None:
            warm_start.remember(self.last_basis, result.basis)

    def train(self, mode: bool = True) -> ChannelWhitening:
        """Switch mode; entering evaluation computes the cached whitening matrix.

        Training drops it: DistributedDataParallel broadcasts buffers, and a process that has
        evaluated must not have one more than the others.
        """
        super().train(mode)
        if mode:
            self.eval_matrix = None
        else:
            self.refresh_eval_matrix()
        return self

    def refresh_eval_matrix(self) -> None:
        """Recompute the cached evaluation matrix now, from the running statistics as they are."""
        if not self.track_running_stats or self._running_square().is_meta:
            return
        with torch.no_grad(), full_float32(self._running_square()):
            self.eval_matrix = self._population_matrix()
        self._eval_source = self._state_key()

    def _state_key(self) -> tuple[Any, ...]:
        """Return what changes when the running statistics do: the buffer's identity and version."""
        square = self._running_square()
        return (id(square), square._version, square.device, square.dtype, self.eps)

    def _population_matrix(self) -> Tensor:
        """Return the whitening matrix of the running statistics, ``[G, D, D]``."""
        square = self._running_square()
        if self.running == "matrix":
            return square.clone()
        dtype = reference.accumulation_dtype(square.dtype, self._options.double_precision)
        rho = None
        if isinstance(self._options.shrink, float):
            rho = torch.full(
                (self.groups,), self._options.shrink, dtype=dtype, device=square.device
            )
        stages = backends.get(backends.choose(self.backend, square.device))
        matrix: Tensor = stages.factor(
            square.to(dtype), None, rho, 1.0, self.eps, self._options.kind
        )[2]
        return matrix

    def _evaluate(self, x: Tensor) -> Tensor:
        """Apply the affine map of the running statistics, in plain differentiable operations.

        Its product has the precision that the user has set for products, TF32 too.
        """
        compiling = torch.compiler.is_compiling()
        if self.eval_matrix is None or (not compiling and self._eval_source != self._state_key()):
            self.refresh_eval_matrix()
        matrix, mean = self.eval_matrix, self.running_mean
        assert matrix is not None and mean is not None
        dtype = torch.promote_types(matrix.dtype, reference.accumulation_dtype(x.dtype))
        size = self.num_features // self.groups
        with no_autocast(x):
            if x.dim() == 2:
                centered = x.to(dtype) - mean.to(dtype)  # [N, C]
                if self.groups == 1:
                    y = centered @ matrix[0].to(dtype)
                else:
                    grouped = centered.reshape(-1, self.groups, 1, size)
                    y = (grouped @ matrix.to(dtype)).reshape(x.shape)
            else:
                columns = x.reshape(x.shape[0], self.groups, size, -1).to(dtype)  # [N, G, D, L]
                y = matrix.mT.to(dtype) @ (columns - mean.to(dtype).reshape(self.groups, size, 1))
                y = y.reshape(x.shape)
            if self.weight is not None and self.bias is not None:
                shape = [1, -1] + [1] * (x.dim() - 2)
                y = y * self.weight.to(dtype).reshape(shape) + self.bias.to(dtype).reshape(shape)
            return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the options, those that differ from the defaults after the common ones."""
        text = (
            f"{self.num_features}, groups={self.groups}, kind={self.kind!r}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
        defaults = {
            "running": "covariance",
            "batch_weight": 1.0,
            "shrinkage": None,
            "process_group": None,
            "backend": "auto",
            "statistics_dtype": None,
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text


def _refresh_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Recompute, or forget, what load_state_dict has made out of date."""
    if isinstance(module, ChannelWhitening):
        module._forget_basis()
        if not module.training:
            module.refresh_eval_matrix()
