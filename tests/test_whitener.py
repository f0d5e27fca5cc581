"""``Whitener``: what it fits, against NumPy and scikit-learn, on data that break others."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening, Whitener, fit
from fastwhiten.validation import WHITENER_KINDS

KINDS = list(WHITENER_KINDS)


def data(rows: int = 400, columns: int = 6, condition: float = 100.0, seed: int = 0) -> np.ndarray:
    """Rows whose population covariance has that condition number, with means of up to 5."""
    draw = np.random.default_rng(seed)
    q, _ = np.linalg.qr(draw.normal(size=(columns, columns)))
    scale = np.logspace(0, -0.5 * np.log10(condition), columns)
    return (draw.normal(size=(rows, columns)) * scale) @ q + np.linspace(-5, 5, columns)


def expected_matrix(x: np.ndarray, kind: str, eps: float = 0.0) -> np.ndarray:
    """By the formulas of the literature, on data of full rank."""
    s = np.cov(x.T, bias=True)
    sigma = np.sqrt(np.diag(s)) if kind.endswith("-cor") else np.ones(len(s))
    s = s / np.outer(sigma, sigma) + eps * np.eye(len(s))
    if kind == "cholesky":
        return np.linalg.inv(np.linalg.cholesky(s)).T
    values, vectors = np.linalg.eigh(s)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(len(s))])
    w = vectors / np.sqrt(values)
    return (w @ vectors.T if kind.startswith("zca") else w) / sigma[:, None]


def close(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_those_of_the_literature(kind: str, eps: float, backend: str) -> None:
    x = data()
    whitener = Whitener(kind=kind, eps=eps, backend=backend, chunk_rows=150).fit(x)
    close(whitener.whitening_, expected_matrix(x, kind, eps))
    close(whitener.unwhitening_, np.linalg.inv(expected_matrix(x, kind, eps)))
    y = whitener.transform(x)
    close(y, (x - x.mean(0)) @ expected_matrix(x, kind, eps))
    close(whitener.inverse_transform(y), x)
    if eps == 0:
        close(np.cov(y.T, bias=True), np.eye(6))
    assert whitener.rank_ == whitener.n_features_in_ == 6 and whitener.n_samples_seen_ == 400


@pytest.mark.parametrize("kind", ["zca", "pca", "zca-cor", "pca-cor"])
def test_n_components_keep_what_varies_most(kind: str) -> None:
    x = data(condition=1e4)
    whitener = Whitener(kind=kind, n_components=2).fit(x)
    y = whitener.transform(x)
    assert y.shape[1] == (2 if kind.startswith("pca") else 6) and whitener.rank_ == 2
    values = np.linalg.eigvalsh(np.cov(y.T, bias=True))
    close(values, [0] * (len(values) - 2) + [1, 1])
    back = whitener.inverse_transform(y)
    close(whitener.transform(back), y)
    if not kind.endswith("-cor"):  # the best approximation of rank 2
        centered = x - x.mean(0)
        u, s, v = np.linalg.svd(centered, full_matrices=False)
        close(back - x.mean(0), (u[:, :2] * s[:2]) @ v[:2], 1e-9)


def test_scikit_learn_agrees_and_takes_it_for_its_own() -> None:
    sklearn = pytest.importorskip("sklearn", reason="the extra test is not installed")
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = data()
    pca = PCA(3, whiten=True, svd_solver="full").fit(x)
    ours = Whitener(kind="pca", n_components=3, ddof=1).fit(x)
    close(ours.transform(x), pca.transform(x), 1e-10)
    close(ours.eigenvalues_[:3], pca.explained_variance_)
    close(ours.inverse_transform(pca.transform(x)), pca.inverse_transform(pca.transform(x)))
    twin = sklearn.base.clone(ours)
    assert twin.get_params() == ours.get_params() and not hasattr(twin, "_unknown")
    pipeline = make_pipeline(StandardScaler(), twin.set_params(kind="zca", n_components=None))
    y = pipeline.fit_transform(x)
    close(np.cov(y.T), np.eye(6))
    close(pipeline.inverse_transform(y), x)
    few = data(20, 12)
    found = Whitener(shrinkage="ledoit-wolf", chunk_rows=7).fit(few + 100.0)
    theirs = sklearn.covariance.LedoitWolf().fit(few)
    assert found.shrinkage_ == pytest.approx(theirs.shrinkage_, rel=1e-9)
    w = found.whitening_.numpy()
    close(w.T @ theirs.covariance_ @ w, np.eye(12), 1e-9)


@pytest.mark.parametrize("shrinkage", ["oas", "ledoit-wolf", 0.3])
def test_intensities_are_those_of_whiten(shrinkage: str | float) -> None:
    x = torch.from_numpy(data(20, 12))
    whitener = Whitener(shrinkage=shrinkage, eps=1e-3, chunk_rows=7).fit(x)
    close(whitener.transform(x), fastwhiten.whiten(x, shrinkage=shrinkage, eps=1e-3))
    assert Whitener(kind="zca-cor", shrinkage="oas").fit(x).shrinkage_ > 0.01


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_condition_1e10(kind: str, dtype: type) -> None:
    """Float64 knows the smallest of the eigenvalues to 1e-16 x 1e10 x D of it, and W to half."""
    x = (data(2000, 16, 1e10) + 3.0).astype(dtype)
    whitener = Whitener(kind=kind).fit(x)
    exact = x.astype(np.float64)
    y = (exact - exact.mean(0)) @ whitener.whitening_.numpy()
    assert whitener.rank_ == 16
    assert np.abs(np.cov(y.T, bias=True) - np.eye(16)).max() < 1e-4
    found = whitener.transform(x)
    assert found.dtype == dtype
    close(found, y, 2e-7 if dtype == np.float32 else 1e-9)


def test_a_mean_far_above_the_deviations() -> None:
    x = data()
    far = np.round(x * 2**20) / 2**20  # so that adding is exact
    near, shifted = Whitener().fit(far), Whitener(chunk_rows=64).fit(far + 2.0**30)
    close(shifted.whitening_, near.whitening_)
    few = Whitener(kind="pca")  # the differences of rows alone tell which directions are null
    for row in far[:4] + 2.0**30:
        few.partial_fit(row[None])
    assert few.rank_ == 3


def streams(x: np.ndarray, folder: Path) -> dict[str, Any]:
    np.save(folder / "x.npy", x)
    uneven = [x[:1], x[1:70], x[70:70], x[70:71], x[71:]]
    return {
        "tensor": torch.from_numpy(x),
        "fortran": np.asfortranarray(x),
        "memory map": np.load(folder / "x.npy", mmap_mode="r"),
        "batches": uneven,
        "generator": (batch for batch in uneven),
        "loader": [(torch.from_numpy(batch), torch.zeros(len(batch))) for batch in uneven],
        "big-endian": x.astype(">f8"),
    }


@pytest.mark.parametrize("shrinkage", [None, "ledoit-wolf"])
def test_any_stream_any_order_any_place(shrinkage: str | None, tmp_path: Path) -> None:
    x = data() + 50.0
    options: dict[str, Any] = {"shrinkage": shrinkage, "chunk_rows": 33}
    expected = Whitener(shrinkage=shrinkage).fit(x)
    found = {name: Whitener(**options).fit(s) for name, s in streams(x, tmp_path).items()}
    parts = [Whitener(**options).fit(part) for part in (x[300:], x[:100], x[100:300])]
    parts[0].save(tmp_path / "part.safetensors")
    merged = pickle.loads(pickle.dumps(parts[1])).merge(
        parts[2], Whitener(), Whitener.load(tmp_path / "part.safetensors")
    )
    assert [part.n_samples_seen_ for part in parts] == [100, 100, 200]
    found["merged"] = merged
    found["into a new one"] = Whitener(**options).merge(merged)
    found["row by row"] = Whitener(**options)
    for row in x:
        found["row by row"].partial_fit(row[None])
    for whitener in found.values():
        assert whitener.n_samples_seen_ == 400
        close(whitener.mean_, expected.mean_, 1e-14)
        close(whitener.covariance_, expected.covariance_, 1e-13)
        assert torch.equal(whitener.covariance_, whitener.covariance_.T)
        close(whitener.whitening_, expected.whitening_, 1e-11)
        assert whitener.shrinkage_ == pytest.approx(expected.shrinkage_, rel=1e-10)


DEGENERATE = {
    "constant": lambda x: np.concatenate([x, np.full((len(x), 40), 0.1), x[:, :2] * 0], 1),
    "duplicate": lambda x: np.concatenate([x, x[:, ::-1], -2 * x[:, :1]], 1),
    "few rows": lambda x: x[:4],
    "many columns": lambda x: x[:60].reshape(10, 36),
    "all equal": lambda x: np.repeat(x[:1], 5, 0),
}
RANKS = {"constant": 6, "duplicate": 6, "few rows": 3, "many columns": 9, "all equal": 0}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("kind", KINDS)
def test_null_directions_give_0_and_come_back_as_the_mean(kind: str, name: str, dtype: Any) -> None:
    x = DEGENERATE[name](data()).astype(dtype)
    whitener = Whitener(kind=kind, chunk_rows=3 if name == "few rows" else 60).fit(x)
    assert whitener.rank_ == RANKS[name]
    y = whitener.transform(x.astype(np.float64))
    values = np.linalg.eigvalsh(np.cov(y.T, bias=True))
    rank = RANKS[name]
    assert np.abs(values - np.repeat([0, 1], [len(values) - rank, rank])).max() < 1e-9
    close(whitener.inverse_transform(y), x, 1e-9)
    if name == "constant":  # what differs there later is neither amplified nor seen
        other = x.astype(np.float64)
        other[:, 6:] += 1.0
        close(whitener.transform(other), y)
    regular = Whitener(kind=kind, eps=0.1).fit(x)
    assert np.isfinite(regular.whitening_.numpy()).all()


@pytest.mark.parametrize("columns", [6, 3])
def test_outputs_are_of_the_kind_and_dtype_of_the_input(columns: int) -> None:
    """Square matrices go through the stage of the layer, others through a product."""
    x = data().astype(np.float32)
    whitener = Whitener(kind="pca", n_components=columns, chunk_rows=77).fit(x)
    exact = whitener.transform(x.astype(np.float64))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rounded = torch.from_numpy(x).to(dtype)
        y = whitener.transform(rounded.requires_grad_())
        assert y.dtype == dtype and not y.requires_grad
        close(y.double(), whitener.transform(rounded.double()), torch.finfo(dtype).eps)
        back = whitener.inverse_transform(y)
        assert back.dtype == dtype and back.shape == (400, 6)
    whole = whitener.transform((100 * x).astype(np.int32))
    assert isinstance(whole, np.ndarray) and whole.dtype == np.float64
    x.flags.writeable = False
    out = np.zeros((400, columns), dtype=np.float16)
    assert whitener.transform(x, out=out) is out
    close(out.astype(np.float64), exact, 1e-3)
    assert whitener.transform(x[:0]).shape == (0, columns)


def test_files_keep_matrices_and_parameters(tmp_path: Path, monkeypatch: Any) -> None:
    x, path = data(), tmp_path / "fitted.safetensors"
    whitener = Whitener(kind="pca-cor", n_components=3, eps=0.01, shrinkage=0.1).fit(x)
    whitener._factors().whitening.neg_()  # another machine's sign
    whitener.save(path)
    loaded = Whitener.load(path)
    assert loaded.get_params() == whitener.get_params() and repr(loaded) == repr(whitener)
    assert torch.equal(loaded.whitening_, whitener.whitening_)
    close(loaded.transform(x), whitener.transform(x), 0.0)
    loaded.set_params(kind="zca", n_components=None, eps=0.0, shrinkage=None)
    close(loaded.whitening_, expected_matrix(x, "zca"))
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected a file of format 'fastwhiten"):
        Whitener.load(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="run `pip install safetensors`, or pickle"):
        whitener.save(path)


def test_progress_is_told_on_request(capsys: Any) -> None:
    x, calls = data(), []
    Whitener(chunk_rows=300).fit(x, progress=lambda *call: calls.append(call))
    Whitener(chunk_rows=300).fit([x, x], progress=lambda *call: calls.append(call))
    assert calls == [(300, 400), (400, 400), (300, None), (400, None), (700, None), (800, None)]
    Whitener(chunk_rows=300).fit_transform(x, progress=True)
    told = capsys.readouterr().err
    assert told.startswith("\rfit: 300 rows of 400 (75 %)\rfit: 400 rows of 400 (100 %)\n")
    assert told.endswith("\rtransform: 400 rows of 400 (100 %)\n")


def test_the_command_fits_and_transforms(tmp_path: Path, capsys: Any) -> None:
    x, names = data().astype(np.float32), ("in.npy", "out.safetensors", "white.npy")
    source, target, white = (str(tmp_path / name) for name in names)
    np.save(source, x)
    options = ["--kind", "pca", "--n-components", "4", "--eps", "0.01", "--shrinkage", "oas"]
    fit.main([source, target, *options, "--transform", white])
    expected = Whitener(kind="pca", n_components=4, eps=0.01, shrinkage="oas").fit(x)
    assert Whitener.load(target).get_params() == expected.get_params()
    found = np.load(white)
    assert found.dtype == np.float32
    close(found, expected.transform(x), 0.0)
    assert "pca of 400 rows, 6 columns, rank 4" in capsys.readouterr().out
    np.save(source, np.full((3, 2), np.nan))
    with pytest.raises(SystemExit, match="expected finite values"):
        fit.main([source, target, "--quiet"])


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
import torch, fastwhiten
from fastwhiten import fit

x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
fastwhiten.ChannelWhitening(3)(x).pow(3).sum().backward()
assert x.grad.isfinite().all()
y = fastwhiten.Whitener().fit([x[:9], (x[9:], "target")]).transform(x)
assert torch.allclose(y.T @ y / 40, torch.eye(3), atol=1e-5)
class Frame:
    def __array__(self):
        raise AssertionError("never asked")
try:
    fastwhiten.Whitener().fit(Frame())
except ImportError as error:
    print(error)
fit.main(["in.npy", "out.safetensors"])
"""


def test_tensors_need_no_numpy() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_NUMPY], capture_output=True, text=True)
    message = (
        "Whitener: arrays and .npy files are read by NumPy, which is not installed; run "
        "`pip install numpy`, or pass tensors\n"
    )
    assert ran.stdout == message, ran.stderr
    assert ran.returncode == 1 and ran.stderr.endswith(f"python -m fastwhiten.fit: {message}")


def test_rows_before_an_error_are_kept() -> None:
    x = data()
    whitener = Whitener(chunk_rows=100).fit(x)
    bad = x.copy()
    bad[250, 0] = np.inf
    with pytest.raises(ValueError, match="expected finite values"):
        whitener.fit(bad)
    assert whitener.n_samples_seen_ == 400
    with pytest.raises(ValueError, match="rows before this chunk are taken in"):
        whitener.partial_fit(bad)
    assert whitener.n_samples_seen_ == 600
    close(whitener.covariance_, np.cov(np.concatenate([x, x[:200]]).T, bias=True))


ERRORS = {
    "not fitted": (lambda: Whitener().transform(data()), ValueError, "call fit or partial_fit"),
    "one row": (lambda: Whitener().fit(data(1)).whitening_, ValueError, "at least 2 rows, got 1"),
    "no row": (lambda: Whitener().fit([]), ValueError, "at least one row, got none"),
    "kind": (lambda: Whitener(kind="cor").fit(data()), ValueError, "expected kind to be one of"),
    "eps": (lambda: Whitener(eps=-1.0).fit(data()), ValueError, "expected eps to be a finite"),
    "ddof": (lambda: Whitener(ddof=2).fit(data()), ValueError, "expected ddof to be 0 or 1, got 2"),
    "n_components": (
        lambda: Whitener(n_components=0).fit(data()),
        ValueError,
        "expected n_components to be a positive integer or None, got 0",
    ),
    "too many": (
        lambda: Whitener(n_components=7).fit(data()).rank_,
        ValueError,
        "expected n_components of at most 6, the number of columns, got 7",
    ),
    "cholesky's": (
        lambda: Whitener(kind="cholesky", n_components=2).fit(data()),
        ValueError,
        "has no n_components; use kind='pca'",
    ),
    "ledoit-wolf of correlations": (
        lambda: Whitener(kind="zca-cor", shrinkage="ledoit-wolf").fit(data()),
        ValueError,
        "needs a second pass",
    ),
    "ledoit-wolf too late": (
        lambda: Whitener().fit(data()).set_params(shrinkage="ledoit-wolf").whitening_,
        ValueError,
        "fit again",
    ),
    "parameter": (lambda: Whitener().set_params(a=1), ValueError, "expected parameters of"),
    "columns": (
        lambda: Whitener().fit(data()).partial_fit(data(columns=5)),
        ValueError,
        "expected 6 columns as before, got 5",
    ),
    "columns of outputs": (
        lambda: Whitener(kind="pca", n_components=2).fit(data()).inverse_transform(data()),
        ValueError,
        r"expected rows of shape \[n, 2\], got \[400, 6\]",
    ),
    "map": (lambda: Whitener().fit(torch.ones(2, 3, 4)), ValueError, "move channels last"),
    "complex": (lambda: Whitener().fit(np.ones((3, 2)) * 1j), TypeError, "expected real numbers"),
    "text": (lambda: Whitener().fit("x.npy"), TypeError, "expected a tensor, an array or an"),
    "batches of lists": (lambda: Whitener().fit([[[1.0], [2.0]]]), TypeError, "batches of shape"),
    "stream": (
        lambda: Whitener().fit(data()).transform([data()]),
        TypeError,
        "transform one batch at a time",
    ),
    "out": (
        lambda: Whitener().fit(data()).transform(data(), out=np.ones((3, 6))),
        ValueError,
        "expected out of shape",
    ),
    "backend": (lambda: Whitener(backend="fast").fit(data()), ValueError, "expected one of"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, exception, message = ERRORS[name]
    with pytest.raises(exception, match=message):
        call()


LAYERS: dict[str, dict[str, Any]] = {
    "covariance": {"eps": 1e-4},
    "intensity": {"eps": 1e-4, "shrinkage": 0.2},
    "cholesky": {"kind": "cholesky", "eps": 1e-4, "ddof": 1},
    "without eps": {},
    "estimated": {"eps": 1e-4, "shrinkage": "oas"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_evaluates_as_transform_and_inverts(name: str) -> None:
    x = torch.from_numpy(data(condition=1e10))
    whitener = Whitener(**LAYERS[name]).fit(x)
    layer = ChannelWhitening.from_whitener(whitener, affine=True)
    expected = whitener.transform(x)
    close(layer(x).detach(), expected, 1e-9)
    assert (layer.running == "covariance") == (name in ("covariance", "intensity", "cholesky"))
    torch.nn.init.uniform_(layer.weight, 0.5, 2.0)
    torch.nn.init.normal_(layer.bias)
    maps = x.reshape(20, 20, 6).movedim(-1, 1)
    for rows in (x, maps):
        y = layer(rows)
        close(layer.inverse(y).detach(), rows, 1e-8)
    y = layer(x[:5]).detach().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda t: layer.inverse(t)[0], y)[:, 0]
    forward = torch.autograd.functional.jacobian(lambda t: layer(t)[0], x[:5])[:, 0]
    close(jacobian @ forward, np.eye(6), 1e-6)
    layer.train()(x)  # trains on
    assert layer.num_batches_tracked == 2


def test_what_has_no_layer_or_no_inverse_is_an_error() -> None:
    x = data()
    for kind in ("pca", "zca-cor"):
        with pytest.raises(ValueError, match=f"'zca' or 'cholesky', got '{kind}'"):
            ChannelWhitening.from_whitener(Whitener(kind=kind).fit(x))
    low = Whitener(n_components=3).fit(x)
    layer = ChannelWhitening.from_whitener(low, affine=True)
    close(layer(torch.from_numpy(x)).detach(), low.transform(x))
    with pytest.raises(ValueError, match="expected a whitening matrix that can be inverted"):
        layer.inverse(torch.zeros(2, 6))
    torch.nn.init.zeros_(layer.weight)
    with pytest.raises(ValueError, match="expected scales other than 0"):
        layer.inverse(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="expected track_running_stats=True"):
        ChannelWhitening(6, track_running_stats=False).inverse(torch.zeros(2, 6))


def test_a_trained_layer_is_undone_in_groups() -> None:
    torch.manual_seed(0)
    layer = ChannelWhitening(6, groups=2, kind="pca", affine=True)
    x = torch.from_numpy(data()).float().reshape(20, 20, 6).movedim(-1, 1)
    layer(x)
    layer.eval()
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-4, atol=1e-4)
    assert fastwhiten.Whitener is Whitener
