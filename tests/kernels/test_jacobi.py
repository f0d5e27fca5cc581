"""The eigensolver on spectra that are hard for it, against float64, and bit by bit."""

import importlib.util
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.backends.test_stages import check_eigensystem
from tests.csrc.eigensystems import assert_solved
from tests.helpers import drvst, spectra

pytestmark = pytest.mark.interpret
eigh = pytest.importorskip("fastwhiten.kernels.eigh")
launch_eigh = pytest.importorskip("fastwhiten.kernels.eigh").launch_eigh
jacobi = pytest.importorskip("fastwhiten.kernels.jacobi")


def rotated(eigenvalues: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """``[1, D, D]`` with these eigenvalues in a random basis, exactly symmetric."""
    size = eigenvalues.numel()
    basis = torch.linalg.qr(torch.randn(size, size, generator=spectra.generator(seed)).double())[0]
    a = basis * eigenvalues.double() @ basis.T
    return ((a + a.T) / 2).to(dtype).unsqueeze(0)


SPECTRA = {
    "condition 1e8": torch.logspace(0, -8, 16),
    "one large": torch.cat([torch.tensor([1e6]), torch.linspace(0.5, 1.0, 12)]),
    "two clusters": torch.cat([torch.full((8,), 1.0), torch.full((8,), 4.0)]),
    "nearly tied": 1.0 + 1e-6 * torch.arange(16.0),
    "rank three": torch.cat([torch.zeros(10), torch.tensor([1.0, 2.0, 3.0])]),
    "rank 32 of 64": torch.cat([torch.zeros(32), torch.linspace(0.1, 2.5, 32)]),
    "plus and minus": torch.cat([torch.linspace(-1, -0.1, 7), torch.linspace(0.1, 1, 7)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SPECTRA)
def test_hard_spectra(name: str, dtype: torch.dtype) -> None:
    a = rotated(SPECTRA[name], dtype)
    eigenvalues, vectors = launch_eigh(a)
    check_eigensystem(a, eigenvalues, vectors)
    truth = torch.linalg.eigvalsh(a.double())
    # Weyl: an eigenvalue is off by the backward error at most, a few roundings of the largest.
    bound = 8 * torch.finfo(dtype).eps * truth.abs().max()
    assert ((eigenvalues.double() - truth).abs() <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [7, pytest.param(32, marks=pytest.mark.full)])
def test_matrices_of_other_test_suites(size: int, dtype: torch.dtype) -> None:
    a = drvst.stack(size, dtype)
    eigenvalues, vectors = launch_eigh(a)
    assert_solved(a, eigenvalues, vectors)
    drvst.assert_within_gates(a, eigenvalues, vectors)


def test_hadamard_and_vanishing_diagonals() -> None:
    """No diagonal entry tells the eigenvalues apart; half of them are tied."""
    h = spectra.hadamard(16, 15)
    zero_diagonal = torch.ones(16, 16) - torch.eye(16)
    cross = torch.zeros(16, 16)
    cross[:8, 8:] = h[:8, :8].float()
    cross = cross + cross.T
    for a in (zero_diagonal, cross):
        check_eigensystem(a.unsqueeze(0), *launch_eigh(a.unsqueeze(0)))


def test_scale_is_exact() -> None:
    """Powers of two come out of the matrix and back exactly, so all scales give the same bits."""
    a = rotated(torch.linspace(1, 2, 5), torch.float32)
    values, vectors = launch_eigh(a)
    for exponent in (-100, -20, 60, 120):
        scaled_values, scaled_vectors = launch_eigh(a * 2.0**exponent)
        assert torch.equal(scaled_values, values * 2.0**exponent)
        assert torch.equal(scaled_vectors, vectors)


def test_same_bits_in_any_company() -> None:
    a = torch.cat([rotated(torch.linspace(1, 2, 9), torch.float32, seed) for seed in range(4)])
    together = launch_eigh(a)
    for i in (0, 3):
        alone = launch_eigh(a[i : i + 1].contiguous())
        assert torch.equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])


def test_example_of_launch_eigh() -> None:
    text = textwrap.dedent(eigh.launch_eigh.__doc__.split("on the CPU)::\n")[1])
    exec(text.replace('"cuda"', '"cpu"'), found := {})
    assert found["vectors"].shape == (1, 2, 2)


@pytest.mark.parametrize(
    "a",
    [
        torch.zeros(1, 65, 65),
        torch.zeros(2, 3, 4),
        torch.zeros(3, 3),
        torch.zeros(1, 4, 4, dtype=torch.float16),
        torch.zeros(4, 4, 2).permute(2, 0, 1),
    ],
    ids=["order 65", "not square", "no batch", "float16", "strides"],
)
def test_what_launch_eigh_refuses(a: Tensor) -> None:
    """Order 65 would be read as its leading 64 rows and columns, a stride as another matrix."""
    with pytest.raises(ValueError, match="launch_eigh: expected contiguous"):
        launch_eigh(a)


def test_example_of_the_docstring(tmp_path: Path) -> None:
    """A kernel of one's own around ``eigensystem``; Triton reads its source, so it needs a file."""
    text = jacobi.__doc__.split("CPU tensors)::\n")[1].split("\nA smaller matrix")[0]
    file = tmp_path / "log_determinant.py"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("log_determinant", file)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    a = torch.cat([rotated(torch.linspace(0.5, 2.0, 16), torch.float32, seed) for seed in (0, 1)])
    torch.testing.assert_close(example.log_determinants(a), torch.logdet(a), rtol=0.0, atol=1e-5)
