"""Derivatives of every order, and the transforms that take them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastwhiten
from fastwhiten.functional import batch_whiten, make_options
from tests.helpers import plain, spectra

KINDS = ("zca", "pca", "cholesky")


def close(value: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    """Equal up to float64 rounding times the condition numbers here (1e2 to 1e3, squared)."""
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=atol)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.Size(shape).numel() // shape[1]
    x = plain.from_rows(spectra.random(rows, shape[1], seed), torch.empty(shape))
    return x.contiguous().requires_grad_()


# name: (shape, options of whiten). eps = 0.1 keeps finite differences (step 1e-6) accurate.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "zca": ((6, 3), {}),
    "pca": ((6, 3), {"kind": "pca"}),
    "cholesky": ((6, 3), {"kind": "cholesky"}),
    "one channel": ((5, 1), {}),
    "groups": ((5, 4), {"groups": 2}),
    "pca, groups": ((5, 4), {"groups": 2, "kind": "pca"}),
    "weights": ((6, 3), {"sample_weight": torch.tensor([1.0, 2, 0, 1, 0.5, 3]).double()}),
    "shrinkage": ((5, 3), {"shrinkage": 0.3}),
    "cholesky, shrinkage": ((5, 3), {"shrinkage": 0.3, "kind": "cholesky"}),
    "map": ((2, 3, 2, 2), {}),
    "sample side": ((3, 5), {}),
    "sample side, groups": ((2, 6), {"groups": 2}),
    "sample side, weights": ((3, 5), {"sample_weight": torch.tensor([1.0, 2.0, 0.5]).double()}),
    "sample side, shrinkage": ((3, 5), {"shrinkage": 0.3}),
    "sample side, map": ((2, 5, 2, 1), {}),
}


def projected(backend: str) -> bool:
    """Whether a random projection of the derivative is compared instead of every entry.

    An interpreted kernel takes a tenth of a second, and every entry takes hundreds of runs.
    """
    return backend == "triton"


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str, backend: str) -> None:
    shape, options = CASES[name]
    assert gradcheck(
        lambda t: fastwhiten.whiten(t, eps=0.1, backend=backend, **options),
        leaf(*shape),
        fast_mode=projected(backend),
    )


@pytest.mark.parametrize("name", CASES)
def test_gradgradcheck(name: str, backend: str) -> None:
    shape, options = CASES[name]
    assert gradgradcheck(
        lambda t: fastwhiten.whiten(t, eps=0.1, backend=backend, **options),
        leaf(*shape),
        fast_mode=projected(backend),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_weight", [1.0, 0.4])
def test_engine_with_affine_and_blending(kind: str, batch_weight: float, backend: str) -> None:
    settings = make_options("test", kind, 2, 0.1, 0.2, None, backend, batch_weight)
    running = torch.stack([torch.eye(2), torch.tensor([[2.0, 0.3], [0.3, 1.0]])]).double()
    gamma = torch.linspace(0.5, 2.0, 4).double().requires_grad_()
    beta = torch.linspace(-1.0, 1.0, 4).double().requires_grad_()

    def function(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return batch_whiten(x, settings, None, scale, shift, running).y

    assert gradcheck(function, (leaf(4, 4), gamma, beta), fast_mode=projected(backend))
    # One random projection instead of every entry: those are checked case by case above.
    assert gradgradcheck(function, (leaf(4, 4), gamma, beta), fast_mode=True)


def test_engine_with_affine_on_the_sample_side(backend: str) -> None:
    settings = make_options("test", "zca", 1, 0.1, None, None, backend)
    gamma = torch.linspace(0.5, 2.0, 5).double().requires_grad_()
    beta = torch.linspace(-1.0, 1.0, 5).double().requires_grad_()

    def function(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return batch_whiten(x, settings, None, scale, shift).y

    assert gradcheck(function, (leaf(3, 5), gamma, beta), fast_mode=projected(backend))


def test_other_public_functions(backend: str) -> None:
    weight = torch.rand(6, dtype=torch.float64)

    def statistics(t: Tensor) -> tuple[Tensor, Tensor]:
        return fastwhiten.batch_statistics(t, groups=2, sample_weight=weight, backend=backend)

    def symmetric(t: Tensor) -> Tensor:
        return t @ t.mT + torch.diag(torch.arange(3.0).double())

    def decompose(t: Tensor) -> tuple[Tensor, Tensor]:
        return fastwhiten.symmetric_eigh(symmetric(t), backend=backend)

    fast = projected(backend)
    assert gradcheck(statistics, leaf(6, 4), fast_mode=fast) and gradgradcheck(
        statistics, leaf(6, 4), fast_mode=True
    )
    square = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(decompose, square, fast_mode=fast)
    assert gradgradcheck(decompose, square, fast_mode=True)
    for kind in KINDS:

        def matrix(t: Tensor, kind: str = kind) -> Tensor:
            return fastwhiten.whitening_matrix(symmetric(t), kind=kind, eps=0.1, backend=backend)

        assert gradcheck(matrix, square, fast_mode=fast)
        assert gradgradcheck(matrix, square, fast_mode=True)


def test_gradient_at_ties_is_finite_and_right(backend: str) -> None:
    """A loss of the eigenspaces: the sum of squares of a symmetric function of the matrix."""
    a = torch.diag(torch.tensor([1.0, 1.0, 3.0, 3.0])).double().requires_grad_()
    eigenvalues, vectors = fastwhiten.symmetric_eigh(a, backend=backend)
    root = (vectors * eigenvalues.sqrt()) @ vectors.mT
    direction = torch.randn(4, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((root * direction).sum(), a)
    s = a.detach().diagonal().sqrt()
    symmetric = (direction + direction.T) / 2
    # Between tied eigenvectors the gradient of a symmetric function has a part that flows through
    # the eigenvalues alone: the diagonal. The documented policy drops the rest inside a tied block.
    expected = symmetric / (s[:, None] + s[None, :])
    apart = s[:, None] != s[None, :]
    close(gradient[apart], expected[apart])
    close(gradient.diagonal(), expected.diagonal())
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["zca", "cholesky"])
def test_second_derivative_at_exact_ties(kind: str, backend: str) -> None:
    """Hadamard columns: all eigenvalues equal, where double backward through eigh is NaN."""
    x = spectra.hadamard(8, 4).requires_grad_()
    assert gradgradcheck(
        lambda t: fastwhiten.whiten(t, kind=kind, eps=0.1, backend=backend), x, fast_mode=True
    )


def scalar(x: Tensor, **options: Any) -> Tensor:
    y = fastwhiten.whiten(x, eps=0.1, **options)
    return (y * torch.linspace(-1.0, 1.0, y.numel()).to(y).reshape(y.shape)).sum()


@pytest.mark.parametrize("shape", [(9, 4), (3, 5), (2, 3, 2, 2)])
def test_func_grad_and_jacrev(shape: tuple[int, ...], backend: str) -> None:
    x = leaf(*shape)
    (expected,) = torch.autograd.grad(scalar(x, backend=backend), x)
    assert torch.equal(torch.func.grad(lambda t: scalar(t, backend=backend))(x.detach()), expected)
    jacobian = torch.autograd.functional.jacobian(lambda t: plain.whiten(t, eps=0.1), x)
    ours = torch.func.jacrev(lambda t: fastwhiten.whiten(t, eps=0.1, backend=backend))(x.detach())
    close(ours, jacobian)


@pytest.mark.parametrize("shape", [(9, 4), (3, 5)])
def test_func_hessian(shape: tuple[int, ...], backend: str) -> None:
    x = leaf(*shape)
    ours = torch.func.jacrev(torch.func.grad(lambda t: scalar(t, backend=backend)))(x.detach())
    expected = torch.autograd.functional.hessian(lambda t: scalar_plainly(t), x)
    close(ours, expected, 1e-8)  # two orders of derivatives through eigenvector gaps of 0.05


def scalar_plainly(x: Tensor) -> Tensor:
    y = plain.whiten(x, eps=0.1, route="iteration")
    return (y * torch.linspace(-1.0, 1.0, y.numel()).to(y).reshape(y.shape)).sum()


BATCHES = {
    "rows": ((3, 9, 4), {}),
    "groups": ((3, 9, 4), {"groups": 2}),
    "pca": ((3, 9, 4), {"kind": "pca"}),
    "cholesky": ((3, 9, 4), {"kind": "cholesky", "groups": 2}),
    "shrinkage": ((3, 9, 4), {"shrinkage": "ledoit-wolf"}),
    "sample side": ((3, 4, 6), {"shrinkage": "oas"}),
    "sample side, groups": ((2, 2, 6), {"groups": 2}),
    "map": ((2, 3, 4, 2, 3), {"groups": 2}),
    "shared weights": ((3, 4, 2), {"sample_weight": torch.tensor([1.0, 2.0, 0.5, 1.0]).double()}),
}


@pytest.mark.parametrize("in_dim", [0, 1])
@pytest.mark.parametrize("name", BATCHES)
def test_vmap_equals_a_loop(name: str, in_dim: int, backend: str) -> None:
    shape, options = BATCHES[name]
    samples = [leaf(*shape[1:], seed=i).detach() for i in range(shape[0])]
    x = torch.stack(samples)

    def function(t: Tensor) -> Tensor:
        return fastwhiten.whiten(t, eps=0.1, backend=backend, **options)

    moved = x.movedim(0, in_dim)
    close(torch.func.vmap(function, in_dims=in_dim)(moved), torch.stack([function(t) for t in x]))

    def gradient(t: Tensor) -> Tensor:
        return torch.func.grad(lambda u: scalar(u, backend=backend, **options))(t)

    close(torch.func.vmap(gradient, in_dims=in_dim)(moved), torch.stack([gradient(t) for t in x]))


@pytest.mark.parametrize("rows", [8, 3], ids=["feature side", "sample side"])
def test_vmap_over_weights(rows: int, backend: str) -> None:
    x, weight = spectra.random(rows, 4), torch.rand(5, rows, dtype=torch.float64) + 0.1

    def function(w: Tensor) -> Tensor:
        return fastwhiten.whiten(x, sample_weight=w, eps=0.1, backend=backend)

    close(torch.func.vmap(function)(weight), torch.stack([function(w) for w in weight]))

    def gradient(w: Tensor) -> Tensor:
        return torch.func.grad(lambda t: scalar(t, sample_weight=w, backend=backend))(x)

    close(torch.func.vmap(gradient)(weight), torch.stack([gradient(w) for w in weight]))


def test_vmap_of_the_other_functions(backend: str) -> None:
    x, a = spectra.random(24, 4).reshape(3, 8, 4), torch.randn(3, 5, 5, dtype=torch.float64)
    a = a @ a.mT + torch.eye(5)
    vmap = torch.func.vmap
    mean, covariance = vmap(lambda t: fastwhiten.batch_statistics(t, backend=backend))(x)
    for i in range(3):
        expected = fastwhiten.batch_statistics(x[i], backend=backend)
        close(mean[i], expected[0])
        close(covariance[i], expected[1])
    eigenvalues, vectors = vmap(lambda t: fastwhiten.symmetric_eigh(t, backend=backend))(a)
    close(vectors @ torch.diag_embed(eigenvalues) @ vectors.mT, a)
    for kind in KINDS:

        def matrix(t: Tensor, kind: str = kind) -> Tensor:
            return fastwhiten.whitening_matrix(t, kind=kind, backend=backend)

        close(vmap(matrix)(a), torch.stack([matrix(t) for t in a]))


@pytest.mark.parametrize("shape", [(9, 4), (3, 5)])
def test_is_grads_batched(shape: tuple[int, int], backend: str) -> None:
    x = leaf(*shape)
    y = fastwhiten.whiten(x, backend=backend)
    grads = torch.randn(4, *shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in grads]
    close(batched, torch.stack(one_by_one))


@pytest.mark.parametrize("shape", [(9, 4), (3, 5)])
def test_create_graph_of_a_gradient_penalty(shape: tuple[int, int], backend: str) -> None:
    def penalty(x: Tensor, function: Any, **options: Any) -> Tensor:
        y = function(x, eps=0.1, **options)
        (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    x = leaf(*shape)
    expected = penalty(x, plain.whiten, route="iteration")
    close(penalty(x, fastwhiten.whiten, backend=backend), expected, 1e-8)  # third powers of y


@pytest.mark.parametrize("training", [True, False])
def test_checkpoint(training: bool, backend: str) -> None:
    layer = fastwhiten.ChannelWhitening(4, affine=True, dtype=torch.float64, backend=backend)
    layer.train(training)
    x = leaf(9, 4)
    layer(x).pow(3).sum().backward()
    expected = [x.grad, layer.weight.grad.clone()]
    x.grad, layer.weight.grad = None, None
    checkpoint(layer, x, use_reentrant=False).pow(3).sum().backward()
    assert torch.equal(x.grad, expected[0]) and torch.equal(layer.weight.grad, expected[1])


def test_gradient_only_where_it_is_asked_for(backend: str) -> None:
    x = spectra.random(9, 4)
    assert not fastwhiten.whiten(x, backend=backend).requires_grad
    layer = fastwhiten.ChannelWhitening(4, affine=True, dtype=torch.float64, backend=backend)
    layer.bias.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is None
    y = fastwhiten.whiten(leaf(9, 4), backend=backend)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
        y.sum().backward()


def test_in_place_change_of_the_input_is_noticed(backend: str) -> None:
    x = leaf(9, 4)
    copy = x * 1.0
    y = fastwhiten.whiten(copy, backend=backend)
    copy.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradient_of_a_shift_is_zero(backend: str) -> None:
    """The output does not change with the mean, so the gradient has no mean (weighted or not)."""
    for shape in ((20, 6), (4, 6)):
        x = leaf(*shape)
        grad = torch.randn(shape, dtype=torch.float64)
        (dx,) = torch.autograd.grad(fastwhiten.whiten(x, backend=backend), x, grad)
        close(dx.sum(0), torch.zeros(6).double())
        assert dx.abs().max() > 0.1


def test_weights_with_gradient_are_refused_and_detached_ones_taken(backend: str) -> None:
    x, weight = leaf(6, 2), torch.rand(6, requires_grad=True)
    with pytest.raises(ValueError, match="requires grad"):
        fastwhiten.whiten(x, sample_weight=weight, backend=backend)
    fastwhiten.whiten(x, sample_weight=weight.detach(), backend=backend).sum().backward()
