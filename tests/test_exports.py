"""Evaluation in other engines computes what the layer does, to float32 rounding, for any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastwhiten
from fastwhiten import ChannelWhitening

pytestmark = pytest.mark.slow

Run = Callable[[Tensor], Tensor]


class Model(nn.Module):
    """Token features and a classifier, whose input will be whitened."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).relu())


def whitened_model() -> nn.Module:
    model = Model()
    fastwhiten.whiten_classifier_input(model, groups=2, affine=True)
    return model


SHAPES = {"layer": (8, 6, 4), "model": (8, 4, 5)}
MADE: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: ChannelWhitening(6, kind="cholesky", affine=True),
    "model": whitened_model,
}


def onnx(module: nn.Module, x: Tensor, path: Path) -> Run:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module, (x,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["x"], verbose=False
    )
    program.save(str(path / "module.onnx"))
    session = onnxruntime.InferenceSession(
        str(path / "module.onnx"), providers=["CPUExecutionProvider"]
    )
    return lambda t: torch.from_numpy(session.run(None, {"x": t.numpy()})[0])


def exported(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(module, (x,), dynamic_shapes=({0: batch},))


def torch_export(module: nn.Module, x: Tensor, path: Path) -> Run:
    torch.export.save(exported(module, x), path / "module.pt2")
    loaded: Any = torch.export.load(path / "module.pt2").module()
    return loaded


def aot_inductor(module: nn.Module, x: Tensor, path: Path) -> Run:
    package = torch._inductor.aoti_compile_and_package(
        exported(module, x), package_path=str(path / "module.pt2")
    )
    return torch._inductor.aoti_load_package(package)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    "engine", [onnx, torch_export, pytest.param(aot_inductor, marks=pytest.mark.full)]
)
def test_engines(
    engine: Callable[..., Run], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    module = MADE[name]()
    for _ in range(3):
        module(torch.randn(SHAPES[name]))
    module.eval()
    with torch.no_grad():
        run = engine(module, torch.randn(SHAPES[name]), tmp_path)
        for size in (1, 2, 20):
            x = torch.randn(size, *SHAPES[name][1:])
            # Sums of six products of numbers of order one, in another order.
            torch.testing.assert_close(run(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MADE)
def test_safetensors(name: str, tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")
    module, other, x = MADE[name](), MADE[name](), torch.randn(SHAPES[name])
    module(x)
    files.save_model(module, str(tmp_path / "module.safetensors"))
    assert files.load_model(other, str(tmp_path / "module.safetensors")) == (set(), [])
    assert torch.equal(other.eval()(x), module.eval()(x))
