"""``Whitener``: whitening fitted to data of any size in one pass, in scikit-learn's manner."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from . import backends, chunks, files, validation
from .backends.intensity import ledoit_wolf, oas
from .chunks import Array, Report
from .factors import Factors, correlations, factor, varying
from .moments import Moments
from .validation import Backend, Shrinkage

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

AllKinds = Literal["zca", "pca", "cholesky", "zca-cor", "pca-cor"]
Same = TypeVar("Same", Tensor, "np.ndarray[Any, Any]")


class Whitener:
    """Whiten rows by the mean and the covariance of a data set, read once.

    For embeddings, profiles and activations: :meth:`fit` to an array or a memory map, or
    :meth:`partial_fit` to batch after batch, then :meth:`transform` what is to be white. Moments
    are accumulated in float64 about the mean of every chunk, so that means far above the
    deviations and condition numbers of 1e10 do no harm. Memory: a few matrices ``[C, C]`` and a
    chunk.

    Where data do not vary (constant and duplicate columns, fewer rows than columns) outputs are 0
    and :meth:`inverse_transform` gives the mean: the whitening matrix is the root of the
    covariance's pseudo-inverse. Directions count as null whose eigenvalue is below ``C * 2.2e-16``
    times the largest one; for Cholesky, columns of whose variance less is left.

    Args:
        kind: ``"zca"`` stays nearest to the data; ``"pca"`` has the leading directions first;
            ``"cholesky"`` makes of every column what those before do not explain; ``"zca-cor"``
            and ``"pca-cor"`` divide by the deviations first, so that units do not matter.
        n_components: how many leading directions are kept, 1 to C; None for all. PCA's outputs
            are ``[n, n_components]``, those of ZCA ``[n, C]`` of that rank. Not for Cholesky.
        eps: >= 0, added to the eigenvalues: in the units of the data squared, for the -cor kinds
            in those of a correlation.
        shrinkage: None, ``"oas"``, ``"ledoit-wolf"`` (not for the -cor kinds; set before fitting)
            or an intensity in [0, 1]; of the correlations for the -cor kinds.
        ddof: 0 divides by n as everything here does, 1 by n - 1 as scikit-learn and kornia do.
        chunk_rows: rows that are read at once; None for about 32 MB in float64.
        backend: as in :func:`fastwhiten.whiten`.

    Attributes:
        n_samples_seen_: number of rows.
        n_features_in_: number of columns, C.
        mean_: ``[C]`` float64 tensor, as all that follow.
        covariance_: ``[C, C]``, before shrinkage and eps.
        whitening_: W ``[C, K]``: outputs are ``(x - mean_) @ whitening_``.
        unwhitening_: ``[K, C]``, which undoes it: ``y @ unwhitening_ + mean_``.
        eigenvalues_: ``[C]``, descending, after shrinkage and eps; none for Cholesky.
        rank_: number of directions that are kept; those without variance are only with eps.
        shrinkage_: intensity, 0 for none.

    Note:
        Inputs are tensors, NumPy arrays, memory maps and data frames ``[n, C]``, and for fitting
        iterables of those too (of tuples, the first element). Fitting goes on where the first
        rows are. A tensor gives a tensor, all else an array, of the input's dtype (float64 for
        integers); products are computed in float64. No gradients: in a model, use
        :meth:`fastwhiten.ChannelWhitening.from_whitener`.

    Example:
        >>> import fastwhiten, numpy
        >>> draw = numpy.random.default_rng(0)
        >>> x = draw.normal(size=(500, 3)) @ [[1, 2, 0], [0, 1, 0], [9, 0, 9]]
        >>> whitener = fastwhiten.Whitener(kind="zca").fit(x)
        >>> y = whitener.transform(x)
        >>> bool(numpy.allclose(y.T @ y / 500, numpy.eye(3)))
        True
        >>> bool(numpy.allclose(whitener.inverse_transform(y), x))
        True
    """

    def __init__(
        self,
        *,
        kind: AllKinds = "zca",
        n_components: int | None = None,
        eps: float = 0.0,
        shrinkage: Shrinkage = None,
        ddof: int = 0,
        chunk_rows: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Keep the parameters; they are checked when they are used."""
        self.kind = kind
        self.n_components = n_components
        self.eps = eps
        self.shrinkage = shrinkage
        self.ddof = ddof
        self.chunk_rows = chunk_rows
        self.backend = backend
        self._moments: Moments | None = None
        self._factored: tuple[tuple[Any, ...], Factors] | None = None

    # Parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; ``deep`` is scikit-learn's and changes nothing."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters; matrices follow without fitting again.

        Raises:
            ValueError: no such parameter.
        """
        for name, value in parameters.items():
            if name not in self.get_params():
                raise ValueError(
                    f"Whitener: expected parameters of {list(self.get_params())}, got {name!r}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """Return the parameters that differ from the defaults."""
        defaults = inspect.signature(type(self)).parameters
        changed = (
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value != defaults[name].default
        )
        return f"Whitener({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether there are rows."""
        return self._moments is not None

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn, which alone asks, that this is a transformer."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32", "float16"]),
        )

    def _check(self) -> None:
        """Check the parameters.

        Raises:
            ValueError: one of them is outside its range, or two do not go together.
        """
        validation.check_whitener(**self.get_params())

    # Fitting

    def fit(
        self, X: Array | Iterable[Any], y: object = None, *, progress: bool | Report = False
    ) -> Self:
        """Forget all rows and take in those of ``X``.

        Args:
            X: ``[n, C]``, or an iterable of batches.
            y: not used, for scikit-learn's pipelines.
            progress: True writes a line on the standard error stream; a function is called with
                the number of rows that are done and that of all (None for a stream).

        Raises:
            TypeError: not numbers.
            ValueError: wrong shape, a value that is not finite, no rows, or a parameter outside
                its range. The rows before are kept then.
        """
        before, self._moments = self._moments, None
        try:
            self.partial_fit(X, progress=progress)
            if self._moments is None:
                raise ValueError("Whitener.fit: expected at least one row, got none")
        except BaseException:
            self._moments = before
            raise
        return self

    @torch.no_grad()
    def partial_fit(
        self, X: Array | Iterable[Any], y: object = None, *, progress: bool | Report = False
    ) -> Self:
        """Take in the rows of ``X`` in addition to those before; arguments as in :meth:`fit`."""
        self._check()
        fourth = self.shrinkage == "ledoit-wolf"
        caller = "Whitener.partial_fit"
        report = chunks.reporter(progress, "fit")
        for chunk in chunks.stream(caller, X, self.chunk_rows, report):
            self._check_width(caller, chunk.shape[1])
            found = Moments.of(chunk, fourth, self.backend)
            if not found.is_finite():
                raise ValueError(
                    f"{caller}: expected finite values, got NaN, infinity or a square above "
                    "float64's range; rows before this chunk are taken in"
                )
            self._factored = None
            if self._moments is None:
                self._moments = found
            else:
                self._moments.merge(found)
        return self

    def fit_transform(self, X: Same, y: object = None, *, progress: bool | Report = False) -> Same:
        """Fit to ``X`` and return it whitened: two passes, so not for iterables."""
        self._array("Whitener.fit_transform", X)
        return self.fit(X, progress=progress).transform(X, progress=progress)

    @torch.no_grad()
    def merge(self, *others: Whitener) -> Self:
        """Take in the rows that others have seen: those of other processes or files.

        The others stay as they are. Their parameters do not matter, but for Ledoit-Wolf's
        shrinkage all have to have been fitted with it.

        Raises:
            ValueError: another number of columns.
        """
        for other in others:
            if other._moments is None:
                continue
            self._check_width("Whitener.merge", len(other._moments.mean))
            self._factored = None
            if self._moments is None:
                self._moments = other._moments.copy()
            else:
                self._moments.merge(other._moments)
        return self

    def _check_width(self, caller: str, width: int) -> None:
        if self._moments is not None and width != self.n_features_in_:
            raise ValueError(
                f"{caller}: expected {self.n_features_in_} columns as before, got {width}"
            )

    # What was fitted

    def _fitted(self) -> Moments:
        if self._moments is None:
            raise ValueError("Whitener: expected rows first; call fit or partial_fit")
        return self._moments

    @property
    def n_samples_seen_(self) -> int:
        """Number of rows taken in."""
        return self._fitted().count

    @property
    def n_features_in_(self) -> int:
        """Number of columns C."""
        return len(self._fitted().mean)

    @property
    def mean_(self) -> Tensor:
        """Mean ``[C]`` float64."""
        return self._fitted().mean

    @property
    def covariance_(self) -> Tensor:
        """Covariance ``[C, C]`` float64, before shrinkage and eps; 0 for constant columns."""
        moments = self._fitted()
        if moments.count < 2:
            raise ValueError(f"Whitener: expected at least 2 rows, got {moments.count}")
        covariance = moments.scatter / (moments.count - self.ddof)
        varies = varying(covariance.diagonal(), moments.mean).to(covariance.dtype)
        return covariance * varies * varies.unsqueeze(1)

    @property
    def shrinkage_(self) -> float:
        """Intensity of the shrinkage, 0 for none."""
        self._check()
        rho = self._intensity(self.covariance_)
        return 0.0 if rho is None else float(rho)

    @property
    def whitening_(self) -> Tensor:
        """W ``[C, K]`` float64."""
        return self._factors().whitening

    @property
    def unwhitening_(self) -> Tensor:
        """What undoes W, ``[K, C]`` float64."""
        return self._factors().unwhitening

    @property
    def eigenvalues_(self) -> Tensor:
        """Eigenvalues ``[C]``, descending, after shrinkage and eps; ``[0]`` for Cholesky."""
        return self._factors().eigenvalues

    @property
    def rank_(self) -> int:
        """Number of directions that are kept, those not null and of the first n_components."""
        return int(self._factors().rank)

    def _intensity(self, covariance: Tensor) -> Tensor | None:
        """Return the intensity ``[]`` for ``covariance`` ``[C, C]``."""
        method, moments, size = self.shrinkage, self._fitted(), len(covariance)
        if method is None or not isinstance(method, str):
            return None if method is None else covariance.new_tensor(float(method))
        if self.kind.endswith("-cor"):
            covariance = correlations(covariance)[0]
        biased = covariance * ((moments.count - self.ddof) / moments.count)
        trace, square = biased.trace(), biased.square().sum()
        if method == "oas":
            return oas(trace, square, float(moments.count), size)
        if moments.quartic is None:
            raise ValueError(
                "Whitener: shrinkage='ledoit-wolf' needs fourth moments, which are accumulated "
                "only where it is set before; fit again"
            )
        fluctuation = moments.quartic / moments.count - square
        return ledoit_wolf(trace, square, fluctuation, float(moments.count), size)

    def _key(self) -> tuple[Any, ...]:
        """Return the parameters that the matrices depend on."""
        return self.kind, self.n_components, self.eps, self.shrinkage, self.ddof, self.backend

    @torch.no_grad()
    def _factors(self) -> Factors:
        """Return the matrices of the parameters and rows as they are now."""
        if self._factored is None or self._factored[0] != self._key():
            self._check()
            covariance, keep = self.covariance_, self.n_components
            if keep is not None and keep > len(covariance):
                raise ValueError(
                    f"Whitener: expected n_components of at most {len(covariance)}, the number of "
                    f"columns, got {keep}"
                )
            rho = self._intensity(covariance)
            found = factor(covariance, self.kind, float(self.eps), rho, keep, self.backend)
            self._factored = self._key(), found
        return self._factored[1]

    # Transforming

    def transform(
        self, X: Same, *, out: Same | None = None, progress: bool | Report = False
    ) -> Same:
        """Return ``(X - mean_) @ whitening_``, ``[n, K]``.

        Args:
            X: ``[n, C]`` tensor or array; one batch at a time of a stream.
            out: ``[n, K]`` to write to, for example a memory map; None makes one.
            progress: as in :meth:`fit`.

        Raises:
            TypeError: an iterable of batches, or not numbers.
            ValueError: wrong shape, nothing fitted, or a parameter outside its range.
        """
        found = self._factors()
        y: Same = self._map("transform", X, self.mean_, found.whitening, None, out, progress)
        return y

    def inverse_transform(
        self, Y: Same, *, out: Same | None = None, progress: bool | Report = False
    ) -> Same:
        """Return ``Y @ unwhitening_ + mean_``, ``[n, C]``; arguments as in :meth:`transform`.

        It undoes :meth:`transform` but for what n_components and null directions left out.
        """
        matrix = self._factors().unwhitening
        none = matrix.new_zeros(len(matrix))
        x: Same = self._map("inverse_transform", Y, none, matrix, self.mean_, out, progress)
        return x

    def _array(self, caller: str, x: Any) -> Array:
        array = chunks.as_array(caller, x)
        if array is None:
            raise TypeError(
                f"{caller}: expected a tensor or an array [n, C], got {type(x).__name__}; of a "
                "stream, transform one batch at a time"
            )
        return array

    @torch.no_grad()
    def _map(
        self,
        name: str,
        x: Any,
        before: Tensor,
        matrix: Tensor,
        after: Tensor | None,
        out: Array | None,
        progress: bool | Report,
    ) -> Any:
        """Return ``(x - before) matrix + after`` in chunks, in the input's kind and dtype."""
        caller = f"Whitener.{name}"
        x = self._array(caller, x)
        if x.shape[1] != len(matrix):
            raise ValueError(
                f"{caller}: expected rows of shape [n, {len(matrix)}], got {list(x.shape)}"
            )
        shape = (x.shape[0], matrix.shape[1])
        if out is None:
            out = chunks.tensor(x[:0]).new_empty(shape)
            out = out if isinstance(x, Tensor) else out.numpy()
        elif tuple(out.shape) != shape:
            raise ValueError(
                f"{caller}: expected out of shape {list(shape)}, got {list(out.shape)}"
            )
        report, done = chunks.reporter(progress, name), 0
        for chunk in chunks.split(x, self.chunk_rows):
            y = _affine(chunk, before, matrix, after, self.backend)
            if isinstance(out, Tensor):
                out[done : done + len(y)] = y
            else:
                out[done : done + len(y)] = y.cpu().numpy()
            done += len(y)
            report(done, len(x))
        return out

    # Files

    def state_dict(self) -> dict[str, Tensor]:
        """Return moments, mean and matrices by name, all float64 but for the counts."""
        moments = self._fitted()
        state = {"count": torch.tensor(moments.count), "mean": moments.mean, **moments.tensors()}
        if moments.count > 1:
            state |= self._factors()._asdict()
        return state

    def save(self, path: str | Path) -> None:
        """Write moments, matrices and parameters to a safetensors file.

        Raises:
            ImportError: the package safetensors is not installed.
            ValueError: nothing fitted.
        """
        files.write(path, self.state_dict(), self.get_params())

    @classmethod
    def load(cls, path: str | Path) -> Whitener:
        """Read what :meth:`save` has written; fitting can go on, and files can be merged.

        Raises:
            ImportError: the package safetensors is not installed.
            ValueError: a file of something else.
        """
        state, parameters = files.read(path)
        found = cls(**parameters)
        del state["mean"]  # for other programs
        factors = {name: state.pop(name) for name in Factors._fields if name in state}
        found._moments = Moments(int(state.pop("count")), **state)
        if factors:
            # Those of the file: another machine may choose another sign of an eigenvector.
            found._factored = found._key(), Factors(**factors)
        return found


def _affine(
    x: Tensor, before: Tensor, matrix: Tensor, after: Tensor | None, backend: str
) -> Tensor:
    """Return ``(x - before) matrix + after`` of ``[n, C]``, in float64, in the dtype of ``x``."""
    before, matrix = before.to(x.device), matrix.to(x.device)
    after = None if after is None else after.to(x.device)
    if matrix.shape[0] == matrix.shape[1] and len(x):
        stages = backends.get(backends.choose(backend, x.device))
        y: Tensor = stages.apply(x.contiguous(), before, matrix.unsqueeze(0), None, after)
        return y
    y = (x.to(matrix.dtype) - before) @ matrix
    return (y if after is None else y + after).to(x.dtype)
