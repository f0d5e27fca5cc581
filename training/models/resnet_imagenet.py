"""ResNet-10, ResNet-50 and ResNeXt-50 for images of about 224 x 224 pixels.

He et al., CVPR 2016, table 1, and Xie et al., CVPR 2017 (32 x 4d), both with the stride in the
3 x 3 convolution of a bottleneck, as most published weights have it. ResNet-10 is one basic block
per stage, the small network of the ImageNet-LT protocol (Liu et al., CVPR 2019).

Parameters have torchvision's names (``conv1``, ``layer1.0.bn2``, ``layer2.0.downsample.0``), so
weights that were trained there load here. torchvision itself is not needed: its wheels do not
import beside every build of torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut.

    Args:
        in_channels: Channels of the input.
        width: Channels inside and of the output.
        stride: Of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Create the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (in groups) and 1 x 1 convolutions with batch normalisation and a shortcut.

    Args:
        in_channels: Channels of the input.
        width: A quarter of the output's channels; inside there are width * groups * width_per_group
            / 64.
        stride: Of the 3 x 3 convolution.
        groups: Groups of the 3 x 3 convolution, the cardinality of ResNeXt.
        width_per_group: Channels of a group where width is 64.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, groups: int = 1, width_per_group: int = 64
    ) -> None:
        """Create the layers."""
        super().__init__()
        inner = width * width_per_group // 64 * groups
        out = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _projection(in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ImageNetResNet(nn.Module):
    """7 x 7 stem, max pool, four stages of 64, 128, 256 and 512 channels, global average pool.

    Args:
        depths: Blocks of each of the four stages.
        in_channels: Channels of the images.
        bottleneck: Bottlenecks (features [B, 2048]) instead of basic blocks ([B, 512]).
        groups: See `Bottleneck`.
        width_per_group: See `Bottleneck`.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self,
        depths: Sequence[int],
        in_channels: int = 3,
        *,
        bottleneck: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        """Create the layers and draw the weights (He et al., ICCV 2015)."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            blocks: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                if bottleneck:
                    blocks.append(Bottleneck(channels, width, stride, groups, width_per_group))
                    channels = width * Bottleneck.expansion
                else:
                    blocks.append(BasicBlock(channels, width, stride))
                    channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.feature_dim = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> pooled features [B, feature_dim], all >= 0."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = functional.max_pool2d(x, 3, 2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the shortcut: a 1 x 1 convolution where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )
