"""Backbones: published sizes, shapes, shortcuts, and models of other packages by name.

torchvision imports only beside the torch that it was built for: a stand-in shows what is asked of
it, and the real one is tested where it can be imported.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import ModelConfig, TrainConfig
from training.config.model import MODEL_NAMES, check_model
from training.engine.memory_format import unsafe_convolutions
from training.errors import ConfigError
from training.models import build_backbone, build_model, check_groups, feature_dim
from training.models.resnet import CifarBlock


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _import(package: str) -> None:
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package} cannot be imported here: {error}")


def test_resnet_32_has_the_published_size():  # "0.46 M" of He et al.
    backbone = build_backbone(ModelConfig("resnet-32"), 3)
    assert backbone.feature_dim == feature_dim(ModelConfig("resnet-32")) == 64
    assert _parameters(backbone) + 65 * 10 == 464_154


def test_small_resnet_has_as_many_features_as_asked():
    narrow, wide = ModelConfig(), ModelConfig(features=256)
    plain, widened = build_backbone(narrow, 3), build_backbone(wide, 3)
    assert (feature_dim(narrow), feature_dim(wide)) == (64, 256)
    assert _parameters(widened) - _parameters(plain) == 64 * 256 + 2 * 256
    features = widened(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 256) and (features >= 0).all() and (features > 0).any()


# The sizes of torchvision's documentation, with a classifier for 1000 classes; resnet-10 by hand.
@pytest.mark.parametrize(
    ("name", "dim", "parameters"),
    [
        ("resnet-10", 512, 5_418_792),
        ("resnet-50", 2048, 25_557_032),
        ("resnext-50", 2048, 25_028_904),
    ],
)
def test_the_real_torchvision_has_the_published_sizes(name: str, dim: int, parameters: int):
    _import("torchvision")
    backbone = build_backbone(ModelConfig(name), 3)
    assert backbone.feature_dim == feature_dim(ModelConfig(name)) == dim
    assert _parameters(backbone) + (dim + 1) * 1000 == parameters
    assert not unsafe_convolutions(backbone)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["resnet-32", "resnet-10"])
def test_features_of_a_batch(name: str, channels: int):
    if name == "resnet-10":
        _import("torchvision")
    backbone = build_backbone(ModelConfig(name), channels)
    features = backbone(torch.randn(2, channels, 64, 64))
    assert features.shape == (2, backbone.feature_dim)
    assert features.isfinite().all() and (features >= 0).all()
    features.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_option_a_takes_every_second_pixel_and_pads_zero_channels():
    block = CifarBlock(2, 4, stride=2).eval()
    with torch.no_grad():
        block.norm2.weight.zero_()  # the residual branch is 0, what is left is the shortcut
    x = torch.rand(1, 2, 5, 5)
    expected = torch.zeros(1, 4, 3, 3)
    expected[:, 1:3] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_groups_are_checked_against_the_feature_dimension_of_every_model(name: str):
    config = TrainConfig(whitening="fused")
    config.model.name = name
    dim = feature_dim(config.model)
    config.whitening_options.groups = dim
    check_groups(config)
    for groups in (0, dim + 1):
        config.whitening_options.groups = groups
        with pytest.raises(ConfigError, match=f"groups: .* divisor of the feature dimension {dim}"):
            check_groups(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig("resnet32"), r"got 'resnet32'. Did you mean 'resnet-32'\?"),
        (ModelConfig("keras:vgg"), "timm:NAME or torchvision:NAME, got 'keras:vgg'"),
        (ModelConfig("timm:"), "got 'timm:'"),
        (ModelConfig("resnet-32", width=8), "expected the default 16 with --model.name resnet-32"),
        (ModelConfig("timm:x", blocks=2), "blocks: expected the default 1"),
        (ModelConfig("resnet-32", features=8), "features: expected the default null with"),
        (ModelConfig(features=0), "model.features: expected a value >= 1, or null, got 0"),
        (ModelConfig(blocks=0), "model.blocks: expected a value >= 1, got 0"),
    ],
)
def test_wrong_models_are_refused(model: ModelConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        check_model(model)


class _Network(nn.Module):
    """What a torchvision model looks like: a body, and a head under one of its names."""

    def __init__(self, attribute: str, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.attribute = attribute
        self.add_module(attribute, head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.attribute)(self.body(x))


class _ResNet(nn.Module):
    """What torchvision's ResNet is asked for, its first layer and its last."""

    def __init__(self, block: int, layers: list[int], **options: int) -> None:
        super().__init__()
        self.asked = (block, layers, options)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.widen = nn.Linear(64, 512 * block)
        self.fc = nn.Linear(512 * block, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.widen(self.conv1(x).mean((2, 3))))


@pytest.fixture
def fake_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {
        "fc": lambda: ("fc", nn.Linear(6, 9)),
        "dropout": lambda: ("classifier", nn.Sequential(nn.Dropout(), nn.Linear(6, 9))),
        "hidden": lambda: (
            "classifier",
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 9)),
        ),
        "none": lambda: ("tail", nn.Linear(6, 9)),
    }
    models = types.ModuleType("torchvision.models")
    models.list_models = lambda: list(heads)
    models.get_model = lambda name, weights: _Network(*heads[name]())
    resnet = types.ModuleType("torchvision.models.resnet")
    resnet.ResNet, resnet.BasicBlock, resnet.Bottleneck = _ResNet, 1, 4
    for module in (types.ModuleType("torchvision"), models, resnet):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "asked", "dim"),
    [
        ("resnet-10", (1, [1, 1, 1, 1], {}), 512),
        ("resnet-50", (4, [3, 4, 6, 3], {}), 2048),
        ("resnext-50", (4, [3, 4, 6, 3], {"groups": 32, "width_per_group": 4}), 2048),
    ],
)
def test_imagenet_resnets_are_torchvisions(
    fake_torchvision: None, name: str, asked: tuple, dim: int, channels: int
):
    config = TrainConfig(whitening="none")
    config.model.name = name
    model = build_model(config, channels, 5, seed=0)
    assert model.backbone.asked == asked
    assert model.classifier.in_features == feature_dim(config.model) == dim
    assert model(torch.randn(2, channels, 9, 9)).shape == (2, 5)
    # The names of torchvision's weights, so that these load; no classifier beside ours.
    assert {"backbone.conv1.weight"} <= model.state_dict().keys()
    assert not any("fc" in key for key in model.state_dict())
    if channels != 3:  # another first layer, with torchvision's initialisation
        std = math.sqrt(2 / (64 * 7 * 7))
        assert model.backbone.conv1.weight.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(("name", "dim"), [("fc", 6), ("dropout", 6), ("hidden", 4)])
def test_torchvision_models_lose_their_last_linear_layer(
    fake_torchvision: None, name: str, dim: int
):
    config = TrainConfig(whitening="eager")
    config.model.name = f"torchvision:{name}"
    model = build_model(config, 3, 5, seed=0)
    assert model.whitening.num_features == model.classifier.in_features == dim
    before, after = model.features(torch.randn(8, 3, 7, 7))
    assert before.shape == after.shape == (8, dim)
    assert model(torch.randn(8, 3, 7, 7)).shape == (8, 5)


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("none", 3, "ends in a linear layer, torchvision:none has none"),
        ("resnet18", 3, "expected one of torchvision.models.list_models"),
        ("fc", 1, "expected images of 3 channels, which torchvision:fc takes, got 1"),
    ],
)
def test_torchvision_models_that_do_not_fit(
    fake_torchvision: None, name: str, channels: int, message: str
):
    with pytest.raises(ConfigError, match=message):
        build_backbone(ModelConfig(f"torchvision:{name}"), channels)


@pytest.mark.parametrize(
    ("name", "package"),
    [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision")]
    + [(name, "torchvision") for name in ("resnet-10", "resnet-50", "resnext-50")],
)
@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_a_package_that_cannot_be_imported_is_one_clear_line(
    name: str, package: str, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for module in (package, f"{package}.models", f"{package}.models.resnet"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / f"{package}.py").write_text(f"raise {error}('no such operator')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as raised:
        build_backbone(ModelConfig(name), 3)
    assert str(raised.value) == (
        f"model.name: expected {package} to be importable beside torch {torch.__version__}, got "
        f"{error}: no such operator; run: pip install {package} (one built for that torch), or use "
        "a model of this package (small-resnet, resnet-32)."
    )


def test_timm_models_come_without_classifier(monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def create_model(name: str, **options: object) -> nn.Module:
        asked.update(options, name=name)
        model = _Network("fc", nn.Identity())
        model.num_features = 6
        return model

    timm = types.ModuleType("timm")
    timm.__version__ = "1.0"
    timm.is_model = lambda name: name == "tiny"
    timm.list_models = lambda pattern: ["tiny"]
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert build_backbone(ModelConfig("timm:tiny"), 3).feature_dim == 6
    assert asked == {"name": "tiny", "pretrained": False, "num_classes": 0, "in_chans": 3}
    with pytest.raises(ConfigError, match=r"model of timm 1.0, got 'tiny2'.*lists tiny"):
        build_backbone(ModelConfig("timm:tiny2"), 3)


def test_a_real_timm_model():
    _import("timm")
    backbone = build_backbone(ModelConfig("timm:resnet18"), 1).eval()
    assert backbone.feature_dim == 512
    assert backbone(torch.randn(2, 1, 64, 64)).shape == (2, 512)


def test_torch_is_not_imported_by_the_configuration(tmp_path: Path):
    code = "import sys, training.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
