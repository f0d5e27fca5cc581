"""Backbones: published sizes, shapes, shortcuts, and models of other packages by name."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import ModelConfig, TrainConfig
from training.config.model import MODEL_NAMES, check_model
from training.errors import ConfigError
from training.models import build_backbone, build_model, check_groups, feature_dim
from training.models.resnet import CifarBlock


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# He et al.'s ResNet-32 has "0.46 M"; the ImageNet sizes are those of torchvision's documentation:
# resnet50 25,557,032 and resnext50_32x4d 25,028,904 with a classifier for 1000 classes.
@pytest.mark.parametrize(
    ("name", "classes", "dim", "parameters"),
    [
        ("resnet-32", 10, 64, 464_154),
        ("resnet-10", 1000, 512, 5_418_792),
        ("resnet-50", 1000, 2048, 25_557_032),
        ("resnext-50", 1000, 2048, 25_028_904),
    ],
)
def test_parameters_are_the_published_ones(name: str, classes: int, dim: int, parameters: int):
    with torch.device("meta"):
        backbone = build_backbone(ModelConfig(name), 3)
    assert backbone.feature_dim == feature_dim(ModelConfig(name)) == dim
    assert _parameters(backbone) + (dim + 1) * classes == parameters


def test_resnet_10_has_basic_blocks_one_per_stage():
    # Counted by hand: stem 3*64*49 + 128; stage 1 2*(64*64*9 + 128); stages 2 to 4
    # in*out*9 + out*out*9 + in*out + 6*out.
    stem = 3 * 64 * 49 + 128
    first = 2 * (64 * 64 * 9 + 128)
    rest = sum(n // 2 * n * 9 + n * n * 9 + n // 2 * n + 6 * n for n in (128, 256, 512))
    with torch.device("meta"):
        assert _parameters(build_backbone(ModelConfig("resnet-10"), 3)) == stem + first + rest


@pytest.mark.parametrize(("name", "size"), [("resnet-32", 32), ("resnet-10", 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_a_batch(name: str, size: int, channels: int):
    backbone = build_backbone(ModelConfig(name), channels)
    features = backbone(torch.randn(2, channels, size, size))
    assert features.shape == (2, backbone.feature_dim)
    assert features.isfinite().all() and (features >= 0).all()
    features.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("name", ["resnet-50", "resnext-50"])
def test_large_models_run_with_the_shapes_of_the_paper(name: str):
    with torch.device("meta"):
        backbone = build_backbone(ModelConfig(name), 3)
        shapes = []
        for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            stage.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape[1:])))
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, 2048)
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


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
    package = types.ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


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


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_is_one_clear_line(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(ConfigError, match=f"pip install {package}, or use a model of this package"):
        build_backbone(ModelConfig(f"{package}:resnet18"), 3)


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
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported here: {error}")
    backbone = build_backbone(ModelConfig("timm:resnet18"), 1).eval()
    assert backbone.feature_dim == 512
    assert backbone(torch.randn(2, 1, 64, 64)).shape == (2, 512)


def test_torch_is_not_imported_by_the_configuration(tmp_path: Path):
    import subprocess

    code = "import sys, training.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
