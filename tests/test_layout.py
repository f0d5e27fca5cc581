"""Memory layouts: read in place, answered in kind."""

import random

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from fastwhiten.layout import as_rows_or_planes, restore, row_weights
from tests.helpers import plain, spectra


def image(n: int = 3, c: int = 4, h: int = 5, w: int = 2) -> torch.Tensor:
    return plain.from_rows(spectra.random(n * h * w, c), torch.empty(n, c, h, w)).contiguous()


IN_PLACE = {
    "rows": (lambda: spectra.random(6, 4), (6, 4)),
    "sequence": (lambda: image().flatten(2), (3, 4, 10)),
    "sequence, channels last": (lambda: image().flatten(2).mT.contiguous().mT, (30, 4)),
    "map": (image, (3, 4, 10)),
    "map, channels last": (lambda: image().contiguous(memory_format=torch.channels_last), (30, 4)),
    "map of one position": (lambda: image(6, 4, 1, 1), (6, 4)),
    "volume": (lambda: image().unflatten(2, (5, 1)), (3, 4, 10)),
    "volume, channels last": (
        lambda: image().unflatten(3, (1, 2)).contiguous(memory_format=torch.channels_last_3d),
        (30, 4),
    ),
    "one sample": (lambda: image(1), (1, 4, 10)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_no_permuted_copy(name: str) -> None:
    make, shape = IN_PLACE[name]
    x = make()
    view = as_rows_or_planes(x)
    assert view.shape == shape
    assert view.data_ptr() == x.data_ptr() and view.is_contiguous()
    assert torch.equal(restore(view, x), x)
    assert restore(view, x).data_ptr() == x.data_ptr()


COPIED = {
    "every second row": lambda: spectra.random(12, 4)[::2],
    "every second column": lambda: spectra.random(6, 8)[:, ::2],
    "transposed": lambda: spectra.random(4, 6).T,
    "expanded": lambda: spectra.random(6, 1).expand(6, 4),
    "height and width swapped": lambda: image().transpose(2, 3),
    "cropped": lambda: image()[:, :, 1:4],
    "cropped, channels last": (
        lambda: image().contiguous(memory_format=torch.channels_last)[:, :, 1:4]
    ),
}


@pytest.mark.parametrize("name", COPIED)
def test_other_layouts_are_copied_once_and_right(name: str, backend: str) -> None:
    x = COPIED[name]()
    view = as_rows_or_planes(x)
    assert view.is_contiguous() and torch.equal(restore(view, x), x)
    y = fastwhiten.whiten(x, backend=backend)
    # The same numbers in another order of summation, in float64, over eps = 1e-3.
    torch.testing.assert_close(y, plain.whiten(x), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", IN_PLACE)
def test_output_and_gradient_keep_the_layout(name: str, backend: str) -> None:
    x = IN_PLACE[name][0]()
    y, dx = plain.value_and_grad(fastwhiten.whiten, x, torch.randn_like(x), backend=backend)
    for result in (y, dx):
        assert result.shape == x.shape
        # Strides of dimensions of size one carry no meaning.
        assert [s for s, n in zip(result.stride(), x.shape, strict=True) if n > 1] == [
            s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1
        ]


def test_gradient_of_another_layout_than_the_input(backend: str) -> None:
    """A channels_last gradient for a contiguous map, and an expanded one: values decide."""
    x = image()
    grad = torch.randn_like(x)
    _, expected = plain.value_and_grad(fastwhiten.whiten, x, grad, backend=backend)
    last = grad.contiguous(memory_format=torch.channels_last)
    _, dx = plain.value_and_grad(fastwhiten.whiten, x, last, backend=backend)
    assert torch.equal(dx, expected)
    one = torch.randn(1, 1, 1, 1, dtype=torch.float64).expand_as(x)
    _, dx = plain.value_and_grad(fastwhiten.whiten, x, one, backend=backend)
    _, expected = plain.value_and_grad(fastwhiten.whiten, x, one.contiguous(), backend=backend)
    assert torch.equal(dx, expected)


def test_row_weights_follow_the_rows() -> None:
    x, weight = image(), torch.rand(3, 5, 2, dtype=torch.float64)
    p = row_weights(weight, x, torch.float64)
    assert p.shape == (30,)
    # Thirty numbers of 0.03 summed in float64.
    assert abs(float(p.sum()) - 1.0) < 1e-15 * 30
    last = as_rows_or_planes(x.contiguous(memory_format=torch.channels_last))
    mean = (weight.unsqueeze(1) * x).sum((0, 2, 3)) / weight.sum()
    torch.testing.assert_close(p @ last, mean, rtol=0.0, atol=1e-14)
    per_sample = row_weights(weight[:, 0, 0], x, torch.float64).reshape(3, 10)
    assert torch.equal(per_sample, per_sample[:, :1].expand(3, 10))


# Layouts by chance: what a user's slicing, transposing and expanding leaves behind.


def any_layout(draw: random.Random) -> torch.Tensor:
    """A float64 tensor ``[N, C, *spatial]``; sizes of one are frequent, strides may be anything."""
    shape = [draw.choice([1, 1, 2, 3, 5]), draw.choice([2, 4, 6])]
    shape += [draw.choice([1, 1, 2, 3, 4]) for _ in range(draw.randrange(4))]
    order = draw.sample(range(len(shape)), len(shape))
    steps = [draw.choice([1, 1, 2]) for _ in shape]
    stored = [shape[i] * steps[i] for i in order]
    x = torch.randn(stored, dtype=torch.float64)
    x = x.permute([order.index(i) for i in range(len(shape))])
    x = x[tuple(slice(None, None, step) for step in steps)]
    for i in range(len(shape)):
        chance = draw.random()
        if chance < 0.1:
            x = x.narrow(i, 0, 1).expand(shape)
        elif chance < 0.2:
            x = x.flip(i)
        elif chance < 0.3 and shape[i] == 1:
            strides = list(x.stride())
            strides[i] = draw.choice([0, 1, 7, 1000])
            x = x.as_strided(shape, strides, x.storage_offset())
    return x


KINDS = ["zca", "pca", "cholesky"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_in_training_and_evaluation(kind: str, backend: str) -> None:
    draw = random.Random(kind + backend)
    torch.manual_seed(draw.randrange(1000))
    interpreted = backend == "triton"
    for _ in range(8 if interpreted else 120):
        x = any_layout(draw)
        if x.numel() // x.shape[1] < 2:
            continue
        groups = draw.choice([1, 2])
        options = {"kind": kind, "groups": groups, "backend": backend}
        case = f"{list(x.shape)}, strides {x.stride()}, {options}"
        weight = torch.rand(x.shape[0], dtype=torch.float64) + 0.1 if draw.random() < 0.3 else None
        grad = torch.randn(x.shape, dtype=torch.float64)
        grad = grad if draw.random() < 0.5 else any_strides(grad, draw)
        results = []
        for t in (x, x.contiguous()):
            layer = ChannelWhitening(x.shape[1], dtype=torch.float64, affine=True, **options)
            leaf = t.detach().requires_grad_()
            y = layer(leaf, weight)
            (dx,) = torch.autograd.grad(y, leaf, grad)
            results.append((y, dx, layer.running_cov, layer.eval()(t)))
        spectrum = torch.linalg.eigvalsh(results[1][2])
        tied = bool((spectrum.diff() < 1e-3).any())
        for ours, expected in zip(*results, strict=True):
            if kind == "pca" and tied:  # its eigenvectors are anything there
                continue
            # Condition numbers of up to 1e4, for eps = 1e-3.
            torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8, msg=case)


def any_strides(t: torch.Tensor, draw: random.Random) -> torch.Tensor:
    order = draw.sample(range(t.dim()), t.dim())
    return t.permute(order).contiguous().permute([order.index(i) for i in range(t.dim())])


@pytest.mark.parametrize("shape", [(1, 64, 7, 7), (1, 64, 49), (1, 64, 2, 3, 4), (1, 8, 8)])
def test_one_sample_with_no_more_positions_than_channels(
    shape: tuple[int, ...], backend: str
) -> None:
    """The sample side took a view of it that was not contiguous."""
    x = torch.randn(shape, dtype=torch.float64)
    y = fastwhiten.whiten(x, backend=backend)
    torch.testing.assert_close(y, plain.whiten(x), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("options", [{}, {"groups": 2, "affine": True}], ids=["", "groups"])
def test_evaluation_keeps_the_layout(name: str, options: dict, backend: str) -> None:
    x = IN_PLACE[name][0]()
    layer = ChannelWhitening(4, dtype=torch.float64, backend=backend, **options)
    layer(spectra.random(20, 4))
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer.eval()(leaf)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf)
    for result in (y, dx):
        assert [s for s, n in zip(result.stride(), x.shape, strict=True) if n > 1] == [
            s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1
        ]
    rows = layer(plain.to_rows(x))
    torch.testing.assert_close(y, plain.from_rows(rows, x), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"groups": 2, "affine": True}], ids=["", "groups"])
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (0, 4, 3, 2), (2, 4, 0), (0, 4, 1, 1)])
def test_evaluation_of_nothing(shape: tuple[int, ...], options: dict, backend: str) -> None:
    """As nn.BatchNorm, with the gradient that goes with it."""
    layer = ChannelWhitening(4, backend=backend, **options)
    layer(torch.randn(20, 4))
    x = torch.empty(shape, requires_grad=True)
    y = layer.eval()(x)
    assert y.shape == shape and y.dtype == x.dtype
    y.sum().backward()
    assert x.grad.shape == shape
    for memory_format in (torch.channels_last,) if len(shape) == 4 else ():
        assert layer(x.detach().contiguous(memory_format=memory_format)).shape == shape


MATRICES = {
    "transposed": lambda s: s.mT,
    "groups swapped": lambda s: s.transpose(0, 1),
    "one of a batch": lambda s: s[:, :1],
    "one of a batch, transposed": lambda s: s[:1, :1].mT,
    "flipped": lambda s: s.flip(0),
    "expanded": lambda s: s[:1, :1].expand(2, 3, 6, 6),
    "every second": lambda s: s[..., ::2, ::2],
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_every_layout(name: str, backend: str) -> None:
    rows = torch.randn(2, 3, 6, 20, dtype=torch.float64)
    a = MATRICES[name](rows @ rows.mT)
    results = []
    for t in (a, a.contiguous()):
        eigenvalues, vectors = fastwhiten.symmetric_eigh(t, start=t, backend=backend)
        white = fastwhiten.whitening_matrix(t, backend=backend)
        sweeps = fastwhiten.symmetric_eigh_sweeps(t, start=t, backend=backend)
        results.append((eigenvalues, vectors, white, sweeps))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("options", [{"batch_weight": 0.5}, {"batch_weight": 0.5, "kind": "pca"}])
def test_parameters_and_buffers_of_every_layout(options: dict, backend: str) -> None:
    """Assigned by load_state_dict: parts of stacked states, say."""
    first = ChannelWhitening(4, affine=True, dtype=torch.float64, backend=backend, **options)
    first(spectra.random(20, 4))
    stacked = {k: torch.stack([t, t], -1) for k, t in first.state_dict().items()}
    second = ChannelWhitening(4, affine=True, dtype=torch.float64, backend=backend, **options)
    second.load_state_dict({k: t[..., 0] for k, t in stacked.items()}, assign=True)
    second.last_basis = torch.stack([second.last_basis] * 2, -1)[..., 1]
    assert not second.running_cov.is_contiguous()
    x = spectra.random(20, 4, 1)
    for _ in range(2):
        torch.testing.assert_close(second(x), first(x))
    torch.testing.assert_close(second.eval()(x), first.eval()(x))
