"""Memory layouts: read in place, answered in kind."""

import pytest
import torch

import fastwhiten
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
