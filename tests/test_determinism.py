"""Same input, same bits: repeated, after other work, and for any number of threads."""

import pytest
import torch
from torch import Tensor

import fastwhiten
from fastwhiten.backends import triton
from fastwhiten.kernels import common
from tests.helpers import plain, spectra

# name: (shape, groups); every path of the kernels that sums over rows or over tiles
CASES = {
    "rows": ((257, 33), 1),
    "many rows": ((5000, 16), 1),
    "groups": ((130, 96), 12),
    "few groups": ((130, 96), 4),  # as many eigenproblems at once as threads leave
    "many tiles a group": ((31, 2, 45, 46), 2),
    "hundred": ((300, 100), 1),
    "wide": ((400, 300), 1),
    "sample side": ((40, 200), 1),
    "map": ((8, 24, 17, 17), 2),
    "channels last": ((8, 24, 17, 17), 2),
}
# The same paths with fewer rows for Triton's interpreter, where a tile takes a millisecond. They
# are cut into at most three chunks (_few_chunks): "many rows" into three of up to three tiles.
INTERPRETED = {
    "rows": ((70, 33), 1),
    "many rows": ((500, 16), 1),
    "groups": ((70, 32), 4),
    "few groups": ((70, 24), 3),
    "many tiles a group": ((5, 2, 7, 9), 2),
    "hundred": ((70, 100), 1),
    "wide": ((300, 260), 1),
    "sample side": ((20, 80), 1),
    "map": ((3, 24, 7, 7), 2),
    "channels last": ((3, 24, 7, 7), 2),
}
assert INTERPRETED.keys() == CASES.keys()


def cases(backend: str) -> dict[str, tuple[tuple[int, ...], int]]:
    return INTERPRETED if backend == "triton" and triton.interpreted() else CASES


@pytest.fixture(autouse=True)
def _two_threads(_threads: None) -> None:
    torch.set_num_threads(2)


@pytest.fixture
def _few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "CHUNKS", 3)


def make(name: str, backend: str = "native") -> tuple[Tensor, Tensor]:
    shape, _ = cases(backend)[name]
    draw = spectra.generator(1)
    x, grad = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    # Of many magnitudes: in another order another sum.
    x *= torch.randn(shape[0], generator=draw).exp().reshape(-1, *[1] * (len(shape) - 1))
    if name == "channels last":
        return tuple(t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    return x, grad


def run(name: str, kind: str, backend: str) -> tuple[Tensor, Tensor]:
    x, grad = make(name, backend)
    return plain.value_and_grad(
        fastwhiten.whiten, x, grad, kind=kind, groups=cases(backend)[name][1], backend=backend
    )


def assert_same_bits(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(one[0], other[0]), "forward"
    assert torch.equal(one[1], other[1]), "backward"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zca", "pca", "cholesky"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_few_chunks")
def test_repeats_and_other_work_in_between(name: str, kind: str, backend: str) -> None:
    first = run(name, kind, backend)
    assert_same_bits(first, run(name, kind, backend))
    for other in ("rows", "map", "sample side"):  # leaves other numbers in reused memory
        x, groups = make(other, backend)[0], cases(backend)[other][1]
        fastwhiten.whiten(1e20 * x, groups=groups, backend=backend)
        fastwhiten.whiten(float("nan") * x, groups=groups, backend=backend)
    assert_same_bits(first, run(name, kind, backend))


# Wider than this, products are the BLAS library's, which splits sums by threads.
OWN_KERNELS = 128


@pytest.mark.parametrize("kind", ["zca", "pca", "cholesky"])
@pytest.mark.parametrize(
    "name", [n for n, (shape, groups) in CASES.items() if shape[1] // groups <= OWN_KERNELS]
)
def test_number_of_threads(name: str, kind: str) -> None:
    """The compiled backend's: the reference's sums are PyTorch's, which splits them by threads."""
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(name, kind, "native"))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("name", ["rows", "many rows", "map", "sample side"])
def test_alignment_of_the_memory(name: str) -> None:
    """A view that starts 4 bytes later takes other vector loads, and must give the same sums."""
    x, grad = make(name)
    storage = torch.empty(x.numel() + 1)
    shifted = storage[1:].view(x.shape).copy_(x)
    assert shifted.data_ptr() % 8 == 4 and shifted.is_contiguous()
    options = {"groups": CASES[name][1], "backend": "native"}
    y = fastwhiten.whiten(x.requires_grad_(), **options)
    other = fastwhiten.whiten(shifted.requires_grad_(), **options)
    assert torch.equal(y, other)
    assert torch.equal(
        torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(other, shifted, grad)[0]
    )


def test_training_from_the_same_seed(backend: str) -> None:
    def train() -> Tensor:
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Linear(6, 8), fastwhiten.ChannelWhitening(8, backend=backend)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(32, 6)).pow(3).sum().backward()
            optimizer.step()
        return torch.cat([model[0].weight.detach().flatten(), model[1].running_cov.flatten()])

    assert torch.equal(train(), train())
