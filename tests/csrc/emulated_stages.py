"""The stages of ``fastwhiten.backends.reference`` by the emulated CUDA kernels.

The functions have the names, arguments and results of the specification, so that the tests of any
backend run on them. ``order`` and ``sanitize`` say how the threads are run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc.emulation import Probe, run

# tests/csrc/drivers/stages.cpp's numbers
STATISTICS, APPLY, BACKWARD_REDUCE, BACKWARD_APPLY, INTENSITY = 0, 1, 2, 3, 4
SAMPLE_STATISTICS, SAMPLE_APPLY, SAMPLE_BACKWARD = 5, 6, 7
BACKWARD_MATRIX, FACTOR, WHITEN_FORWARD, WHITEN_BACKWARD = 10, 11, 20, 21


def layout(x: Tensor, groups: int) -> dict[str, int]:
    """Say how rows ``[M, C]`` or planes ``[N, C, L]`` lie in memory."""
    length = x.shape[2] if x.dim() == 3 else 1
    return {"samples": x.shape[0], "channels": x.shape[1], "length": length, "groups": groups}


@dataclass(frozen=True)
class EmulatedStages:
    """A backend whose kernels run in the emulator."""

    order: str = "forward"
    sanitize: bool | str = False
    probe: Probe | None = None

    def _run(self, stage: int, t: torch.dtype, **arguments) -> dict[str, Tensor]:
        double = int(t == torch.float64)
        return run(
            "stages",
            order=self.order,
            sanitize=self.sanitize,
            probe=self.probe,
            stage=stage,
            double=double,
            **arguments,
        )

    def statistics(self, x, row_weight, groups, double_precision):
        t = reference.accumulation_dtype(x.dtype, double_precision)
        size = x.shape[1] // groups
        out = self._run(STATISTICS, t, x=x, p=row_weight, **layout(x, groups))
        return out["out_mean"], out["out_covariance"].reshape(groups, size, size)

    def blended(self, x, row_weight, groups, running, batch_weight):
        """Return what the statistics stage leaves for the factor stage."""
        out = self._run(
            STATISTICS,
            running.dtype,
            x=x,
            p=row_weight,
            running=running,
            batch_weight=batch_weight,
            **layout(x, groups),
        )
        return out["out_blended"].reshape(running.shape)

    def eigh(self, a, start=None):
        size = a.shape[-1]
        if size > 128:
            return reference.eigh(a)  # left to the library
        out = run(
            "eigh", order=self.order, sanitize=self.sanitize, a=a, start=start, B=a.shape[0], D=size
        )
        return out["values"].reshape(a.shape[:-1]), out["vectors"].reshape(a.shape)

    def intensity(self, x, mean, covariance, running, row_weight, batch_weight, method, value):
        return self._run(
            INTENSITY,
            mean.dtype,
            x=x,
            mean=mean,
            covariance=covariance,
            running=running,
            p=row_weight,
            batch_weight=batch_weight,
            method=method,
            value=value,
            **layout(x, covariance.shape[0]),
        )["out_rho"]

    def factor(
        self, covariance, running_covariance, rho, batch_weight, eps, kind, start=None, given=None
    ):
        groups, size = covariance.shape[:2]
        spectrum, basis = given or (None, None)  # the eigensystem, computed elsewhere
        out = self._run(
            FACTOR,
            covariance.dtype,
            covariance=covariance,
            running=running_covariance,
            rho=rho,
            batch_weight=batch_weight,
            eps=eps,
            kind=kind,
            groups=groups,
            width=size,
            start=start,
            spectrum=spectrum,
            basis=basis,
        )
        return self._factors(out, groups, size, kind)

    @staticmethod
    def _factors(out, groups, size, kind):
        matrix = out["out_matrix"].reshape(groups, size, size)
        if kind == reference.CHOLESKY:
            return out["out_eigenvalues"], out["out_basis"], matrix
        eigenvalues = out["out_eigenvalues"].reshape(groups, size)
        return eigenvalues, out["out_basis"].reshape(groups, size, size), matrix

    def apply(self, x, mean, matrix, gamma, beta):
        out = self._run(
            APPLY,
            mean.dtype,
            x=x,
            mean=mean,
            matrix=matrix,
            gamma=gamma,
            beta=beta,
            **layout(x, matrix.shape[0]),
        )
        return out["out_y"].reshape(x.shape)

    def backward_reduce(self, x, grad, mean, groups):
        size = x.shape[1] // groups
        out = self._run(BACKWARD_REDUCE, mean.dtype, x=x, grad=grad, mean=mean, **layout(x, groups))
        return out["out_grad_sum"], out["out_cross"].reshape(groups, size, size)

    def backward_matrix(self, cross, eigenvalues, basis, matrix, gamma, rho, batch_weight, kind):
        spectral = kind != reference.CHOLESKY
        out = self._run(
            BACKWARD_MATRIX,
            cross.dtype,
            cross=cross,
            eigenvalues=eigenvalues if spectral else None,
            basis=basis if spectral else None,
            matrix=matrix,
            gamma=gamma,
            rho=rho,
            batch_weight=batch_weight,
            kind=kind,
            groups=cross.shape[0],
            width=cross.shape[1],
        )
        return out["out_inner"].reshape(cross.shape), out["out_grad_gamma"]

    def backward_apply(self, x, grad, mean, grad_sum, matrix, inner, gamma, row_weight):
        out = self._run(
            BACKWARD_APPLY,
            mean.dtype,
            x=x,
            grad=grad,
            mean=mean,
            grad_sum=grad_sum,
            matrix=matrix,
            inner=inner,
            gamma=gamma,
            p=row_weight,
            **layout(x, matrix.shape[0]),
        )
        return out["out_dx"].reshape(x.shape)

    def whiten_forward(
        self,
        x,
        gamma,
        beta,
        row_weight,
        running_covariance,
        groups,
        batch_weight,
        eps,
        kind,
        double_precision,
        shrink_method,
        shrink_value,
        start=None,
    ):
        size = x.shape[1] // groups
        out = self._run(
            WHITEN_FORWARD,
            reference.accumulation_dtype(x.dtype, double_precision),
            x=x,
            gamma=gamma,
            beta=beta,
            p=row_weight,
            running=running_covariance,
            batch_weight=batch_weight,
            eps=eps,
            kind=kind,
            method=shrink_method,
            value=shrink_value,
            start=start,
            **layout(x, groups),
        )
        covariance = out["out_covariance"].reshape(groups, size, size)
        factors = self._factors(out, groups, size, kind)
        return out["out_y"].reshape(x.shape), out["out_mean"], covariance, *factors, out["out_rho"]

    def whiten_backward(
        self,
        grad,
        x,
        mean,
        eigenvalues,
        basis,
        matrix,
        gamma,
        rho,
        row_weight,
        batch_weight,
        kind,
    ):
        spectral = kind != reference.CHOLESKY
        out = self._run(
            WHITEN_BACKWARD,
            mean.dtype,
            grad=grad,
            x=x,
            mean=mean,
            eigenvalues=eigenvalues if spectral else None,
            basis=basis if spectral else None,
            matrix=matrix,
            gamma=gamma,
            rho=rho,
            p=row_weight,
            batch_weight=batch_weight,
            kind=kind,
            **layout(x, matrix.shape[0]),
        )
        return out["out_dx"].reshape(x.shape), out["out_grad_gamma"], out["out_grad_sum"]

    def sample_statistics(self, x, row_weight, groups, double_precision):
        t = reference.accumulation_dtype(x.dtype, double_precision)
        rows = x.shape[0]
        out = self._run(SAMPLE_STATISTICS, t, x=x, p=row_weight, **layout(x, groups))
        gram = out["out_gram"].reshape(groups, rows, rows)
        return out["out_mean"], out["out_scaled"].reshape(x.shape), gram

    def sample_apply(self, scaled, eigenvalues, eigenvectors, row_weight, rho, eps, out_dtype):
        groups, rows = eigenvalues.shape
        out = self._run(
            SAMPLE_APPLY,
            scaled.dtype,
            out=torch.empty(0, dtype=out_dtype),
            scaled=scaled,
            eigenvalues=eigenvalues,
            eigenvectors=eigenvectors,
            p=row_weight,
            rho=rho,
            eps=eps,
            **layout(scaled, groups),
        )
        projected = out["out_projected"].reshape(groups, rows, scaled.shape[1] // groups)
        return out["out_y"].reshape(scaled.shape), projected

    def sample_backward(self, grad, projected, eigenvalues, eigenvectors, row_weight, rho, eps):
        out = self._run(
            SAMPLE_BACKWARD,
            projected.dtype,
            grad=grad,
            projected=projected,
            eigenvalues=eigenvalues,
            eigenvectors=eigenvectors,
            p=row_weight,
            rho=rho,
            eps=eps,
            **layout(grad, eigenvalues.shape[0]),
        )
        return out["out_dx"].reshape(grad.shape)
