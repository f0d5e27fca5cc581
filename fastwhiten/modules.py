"""``ChannelWhitening``: whitening as a layer, at home where ``nn.BatchNorm`` is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import distributed, evaluation, loading, recomputation, validation, warm_start
from ._ops import ops
from .distributed import SyncModule
from .functional import batch_whiten, make_options
from .layout import channels_back, channels_second
from .sides import Options, Whitened
from .validation import Backend, Kind, Running, Shrinkage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .whitener import Whitener


# Attributes that may be set later, as those of nn.BatchNorm.
_SETTINGS = ("kind", "eps", "shrinkage", "statistics_dtype", "backend", "batch_weight")


class ChannelWhitening(SyncModule):
    """Whiten channels with batch statistics in training and with running statistics in evaluation.

    In training, as :func:`fastwhiten.whiten`: the batch is centred and decorrelated exactly, and
    gradients flow through mean, covariance and eigensystem. The running statistics follow with
    ``momentum``. In evaluation the layer is an affine map, whose matrix is that of the running
    statistics as they are now, whatever has changed them. It is computed again when their values
    differ from those of the last call (comparing them waits for a GPU), and is a constant between
    plain matrix products for ``torch.export``. A CUDA graph keeps the matrix it was captured with.

    Args:
        num_features: number of channels, C.
        channel_dim: where the channels are, as in :func:`fastwhiten.whiten`: -1 for tokens
            ``[N, L, C]``.
        groups: number of channel groups, whitened independently; divides C. Groups bound the cost
            and the number of rows needed: D = C / groups.
        kind: ``"zca"``, ``"pca"`` or ``"cholesky"``.
        eps: > 0, added to the eigenvalues; against the spectrum as in :func:`fastwhiten.whiten`.
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
        ``[N, C]`` or ``[N, C, *spatial]`` to the same. Channels are dimension 1, as for
        ``nn.BatchNorm``: a sequence ``[N, L, C]`` takes ``channel_dim=-1``, and where L equals C
        nothing can notice that it was forgotten.

    Attributes:
        weight: ``[C]`` scale, or None.
        bias: ``[C]`` shift, or None.
        running_mean: ``[C]``, starts at 0.
        running_cov: ``[G, D, D]``, biased (divisor M), starts at the identity; with
            ``running="matrix"`` it is ``running_matrix`` instead.
        num_batches_tracked: number of batches that updated the running statistics.
        last_basis: ``[G, D, D]``, the last step's eigenvectors, where ``batch_weight`` is below 1
            and D at most 128 (float64: 64), else None; the identity where the eigensolver takes no
            start (on the CPU, and Triton's). Not in the ``state_dict``; a reset or a load forgets
            it. Set it to None if a training resumed on a GPU has to repeat every bit.

    Raises:
        ValueError: an option outside its range, or an input of the wrong shape.
        TypeError: an input that is not floating point, a ``channel_dim`` that is no integer.

    Note:
        A batch whose group has no more rows than channels spans fewer directions than there are:
        outputs in training have a deviation of ``sqrt((M - 1) / D)``, those of evaluation on
        running statistics of about 1, and far more with ``running="matrix"``. The layer warns of
        it on its first training batch (eager mode, no shrinkage, ``batch_weight`` 1).

    Note:
        A batch with a non-finite value gives NaN output and leaves the running statistics as they
        were, without an exception or a synchronisation, so that ``torch.amp.GradScaler`` can skip
        the step.

    Note:
        A forward inside a backward pass is a repetition of an earlier one (activation
        checkpointing, ``torch.utils.checkpoint``): it blends in what the first pass has blended in,
        so gradients are those without checkpointing, and leaves the running statistics alone, which
        ``nn.BatchNorm`` moves twice. With ``batch_weight`` below 1, up to 32 first passes may wait
        for their repetition, and a compiled layer refuses to be repeated (RuntimeError).

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
    last_basis: Tensor | None
    channel_dim: int = 1  # of layers that were pickled before there were others
    not_copied = ("_seen", "_first_passes", "_fit_is_known", "_rows_are_known")

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        groups: int = 1,
        kind: Kind = "zca",
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = True,
        running: Running = "covariance",
        batch_weight: float = 1.0,
        shrinkage: Shrinkage = None,
        process_group: ProcessGroup | str | None = None,
        backend: Backend = "auto",
        statistics_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Validate the options and create parameters and buffers."""
        super().__init__()
        validation.check_layer(
            num_features,
            groups,
            kind,
            momentum,
            track_running_stats,
            running,
            batch_weight,
            channel_dim,
        )
        self.num_features = num_features
        self.channel_dim = channel_dim
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
        self._options = self._make_options()
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
            _after_load
        )

    @classmethod
    def from_whitener(cls, whitener: Whitener, **options: Any) -> ChannelWhitening:
        """Return a layer, in evaluation mode, whose evaluation is ``whitener.transform``.

        Its running statistics are the whitener's mean and covariance where eps, shrinkage and rank
        allow (eps > 0, no estimated intensity, no null direction left out), so that training can
        go on; else ``running="matrix"`` holds the whitening matrix as it is.

        Args:
            whitener: fitted, of kind ``"zca"`` or ``"cholesky"``.
            options: other options of the layer; ``dtype`` is float64 by default, with which
                the two agree at any condition number, and float32 rounds the matrix.

        Raises:
            ValueError: another kind, or a whitener without rows.

        Example:
            >>> import torch, fastwhiten
            >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
            >>> whitener = fastwhiten.Whitener(eps=1e-3).fit(x)
            >>> layer = fastwhiten.ChannelWhitening.from_whitener(whitener)
            >>> torch.allclose(layer(x), whitener.transform(x), atol=1e-6)
            True
        """
        return loading.from_whitener(cls, whitener, options)

    def _make_options(self) -> Options:
        """Return the settings as they are now, validated."""
        return make_options(
            "ChannelWhitening",
            self.kind,
            self.groups,
            self.eps,
            self.shrinkage,
            self.statistics_dtype,
            self.backend,
            self.batch_weight,
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
        basis = warm_start.first_basis(square, self.batch_weight, self.kind)
        self.register_buffer("last_basis", basis, persistent=False)
        self.register_buffer(unused, None)
        self._start_anew()

    def _start_anew(self) -> None:
        self._seen: tuple[Tensor, ...] = ()
        self._look()
        self._first_passes = recomputation.FirstPasses()
        self._fit_is_known = self._rows_are_known = False

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
        if self.last_basis is not None and self.running_cov is not None:
            self.last_basis = warm_start.forget(self.last_basis, self.running_cov)

    def _apply(self, fn: Any, recurse: bool = True) -> ChannelWhitening:
        """Convert parameters and buffers; a basis that was rounded is orthogonal no longer."""
        before = None if self.last_basis is None else self.last_basis.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.last_basis is not None and self.last_basis.dtype != before:
            self._forget_basis()
        self._look()
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
            sample_weight: ``[N]`` or ``[N, *spatial]`` weights of the batch statistics (of tokens
                ``[N, L]``, 0 for padding); not used in evaluation with running statistics.

        Returns:
            Tensor of the shape and dtype of ``x``.
        """
        use_batch = self.training or not self.track_running_stats
        # As in nn.SyncBatchNorm: evaluation on one process alone must not wait for the others.
        process_group = self.process_group if self.training else None
        alone = use_batch and process_group is None
        self._check_input(x, min_rows=2 if alone else 0)
        if not use_batch:
            return self._evaluate(x)
        tracking = self.training and self.track_running_stats
        if tracking and not torch.compiler.is_compiling():
            tracking = not recomputation.inside_backward()
            self._leave_inference_mode()
            self._warn_if_few_rows(x)
        result = batch_whiten(
            x,
            self._options,
            sample_weight,
            self.weight,
            self.bias,
            self._blended_in(x),
            need=self.running if tracking else None,
            start=self.last_basis,
            process_group=process_group,
            channel_dim=self.channel_dim,
        )
        if tracking:
            self._update(result)
        return result.y

    def _check_input(self, x: Tensor, min_rows: int) -> None:
        validation.check_layer_input(
            *(x, self.num_features, self.groups, self.running_mean),
            min_rows=min_rows,
            channel_dim=self.channel_dim,
        )

    def _blended_in(self, x: Tensor) -> Tensor | None:
        """Return the running covariance that training blends in, None for none.

        A copy: the graph keeps it, and the buffer is updated in place before the backward.
        """
        if self.batch_weight == 1.0 or self.running_cov is None:
            return None
        if torch.compiler.is_compiling():
            copied: Tensor = ops.blended_in(self.running_cov.detach())
            return copied
        x = channels_second(x, self.channel_dim)
        return self._first_passes.blended_in(x, self.running_cov)

    def _leave_inference_mode(self) -> None:
        """Replace buffers made in inference mode: outside of it they cannot be updated."""
        if not torch.is_inference_mode_enabled():
            for name, buffer in self._buffers.items():
                if buffer is not None and buffer.is_inference():
                    self._buffers[name] = buffer.clone()

    def _warn_if_never_fitted(self) -> None:
        """Look once, because that waits for the device."""
        count, mean = self.num_batches_tracked, self.running_mean
        if self._fit_is_known or count is None or mean is None or not evaluation.can_read(count):
            return
        self._fit_is_known = True
        evaluation.warn_if_initial(count, mean, self._running_square())

    def _warn_if_few_rows(self, x: Tensor) -> None:
        """Look at the first batch of a training, where nothing makes up for missing rows."""
        if self._rows_are_known:
            return
        self._rows_are_known = True
        if self.batch_weight == 1.0 and self.shrinkage is None:
            processes = distributed.size("ChannelWhitening", self.process_group)
            rows = x.numel() // self.num_features * processes
            evaluation.warn_if_few_rows(
                rows, self.num_features, self.groups, self.running, self.eps
            )

    @torch.no_grad()
    def _update(self, result: Whitened) -> None:
        """Move the running statistics towards the batch's, unless the batch was not finite."""
        assert self.running_mean is not None and self.num_batches_tracked is not None
        square = self._running_square()
        batch = result.covariance if self.running == "covariance" else result.matrix
        assert batch is not None
        if self.last_basis is not None and result.basis is not None:
            warm_start.remember(self.last_basis, result.basis)  # of the groups that are finite
        # A sum is finite only if all its terms are. On a GPU the flag stays there: the host would
        # have to wait for it.
        total = result.mean.sum() + batch.sum()
        finite = None
        on_host = total.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (on_host and evaluation.can_read(total)):
            finite = torch.isfinite(total)
        elif not math.isfinite(total.item()):
            return
        self.num_batches_tracked.add_(1 if finite is None else finite)
        step: float | Tensor | None = self.momentum
        if step is None:
            step = 1.0 / self.num_batches_tracked.clamp(min=1).to(total.dtype)
        for running, new in ((self.running_mean, result.mean), (square, batch)):
            safe = new if finite is None else torch.where(finite, new, running.to(new.dtype))
            if running.dtype == new.dtype:
                running.lerp_(safe, step)
            else:
                running.copy_(torch.lerp(running.to(new.dtype), safe, step))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and what follows from it: settings, the covariance to export."""
        super().__setattr__(name, value)
        if name in _SETTINGS and "_options" in self.__dict__:
            self._options = self._make_options()
        elif name == "running_cov":
            self._look()

    def _look(self) -> None:
        """Remember the layer's own buffer: ``torch.export`` puts a fake tensor in its place."""
        own = self._buffers.get("running_cov")
        if not self._seen or self._seen[0] is not own:
            self._seen = () if own is None else (own,)

    def _evaluate(self, x: Tensor) -> Tensor:
        """Apply the affine map of the running statistics."""
        if torch.compiler.is_exporting() and self.running == "covariance":
            matrix = self._exported_matrix()
        else:
            if not torch.compiler.is_compiling():
                self._look()
                self._warn_if_never_fitted()
            matrix = self._population_matrix()
        assert self.running_mean is not None
        x = channels_second(x, self.channel_dim)
        y = evaluation.apply(x, self.running_mean, matrix, self.weight, self.bias)
        return channels_back(y, self.channel_dim)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo evaluation, the affine map included: ``layer.eval().inverse(layer(x))`` is ``x``.

        Args:
            y: as the layer returns it.

        Returns:
            Tensor of the shape and dtype of ``y``, differentiable.

        Raises:
            ValueError: no running statistics, or a map that has no inverse: a whitening matrix
                that is singular to rounding, or a scale of 0.
        """
        if not self.track_running_stats or self.running_mean is None:
            raise ValueError(
                "ChannelWhitening.inverse: expected track_running_stats=True: batch statistics "
                "are not kept, and what they have whitened cannot be undone"
            )
        self._check_input(y, min_rows=0)
        matrix = self._population_matrix()
        y = channels_second(y, self.channel_dim)
        x = evaluation.invert(y, self.running_mean, matrix, self.weight, self.bias)
        return channels_back(x, self.channel_dim)

    def _population_matrix(self) -> Tensor:
        """Return the whitening matrix of the running statistics, ``[G, D, D]``."""
        square = self._running_square()
        if self.running == "matrix":
            # A copy: the graph keeps it, and the buffer may be updated before the backward.
            return square.detach().clone()
        return evaluation.population_matrix(square, *self._matrix_options())

    def _exported_matrix(self) -> Tensor:
        square = self._running_square()
        return evaluation.exported_matrix(square, self._seen, *self._matrix_options())

    # What torch.compiler.assume_constant_result sets; calling it would import the compiler.
    _exported_matrix._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _matrix_options(self) -> tuple[int, float, float | None, bool, str]:
        """Return kind, eps, fixed shrinkage intensity, float64 or not, backend."""
        options = self._options
        shrink = options.shrink if isinstance(options.shrink, float) else None
        return options.kind, options.eps, shrink, options.double_precision, options.backend

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load; say how to convert what does not fit."""
        before = len(args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)
        loading.add_hints(self, state_dict, prefix, before, args[-3], args[-1])

    def extra_repr(self) -> str:
        """Return the options, those that differ from the defaults after the common ones."""
        text = (
            f"{self.num_features}, groups={self.groups}, kind={self.kind!r}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
        defaults = {"channel_dim": 1, "running": "covariance", "batch_weight": 1.0}
        defaults |= {"shrinkage": None, "process_group": None}
        defaults |= {"backend": "auto", "statistics_dtype": None}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text


def _after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Forget what load_state_dict has made out of date."""
    if isinstance(module, ChannelWhitening):
        module._forget_basis()
