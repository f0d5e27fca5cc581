"""A residual network for images of a few pixels (He et al., CVPR 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Create the layers; the shortcut is a 1 x 1 convolution where the shape changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, three stages (the second and third halve the image), global average pool.

    Args:
        in_channels: Channels of the images.
        width: Channels of the first stage; the next ones have 2 and 4 times as many.
        blocks: Residual blocks per stage.
        features: D. A 1 x 1 convolution makes so many of the last stage's channels before the pool;
            None is 4 * width, without it.
    """

    def __init__(
        self, in_channels: int = 1, width: int = 16, blocks: int = 1, features: int | None = None
    ) -> None:
        """Create the layers and draw the weights (He et al., ICCV 2015)."""
        super().__init__()
        self.feature_dim = features or 4 * width
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            out = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, out, stride))
                channels = out
        if features is not None:
            convolution = nn.Conv2d(channels, features, 1, bias=False)
            stages += [convolution, nn.BatchNorm2d(features), nn.ReLU()]
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> pooled features [B, D], all >= 0."""
        return self.stages(self.stem(images)).mean((2, 3))


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut without parameters.

    Option A of He et al.: where the shape changes, the shortcut takes every second pixel and pads
    the new channels with zeros, half of them before and half after.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; in_channels, or in_channels plus an even number.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Create the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2  # zero channels on either side

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.padding == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """Stem and three stages of 16, 32 and 64 channels, global average pool: 6 n + 2 layers.

    The network of the CIFAR-LT protocol (Cao et al., NeurIPS 2019). With a linear classifier for
    10 classes, n = 5 (ResNet-32) has 464,154 parameters.

    Args:
        in_channels: Channels of the images.
        blocks: Residual blocks per stage, n.
    """

    feature_dim = 64

    def __init__(self, in_channels: int = 3, blocks: int = 5) -> None:
        """Create the layers and draw the weights (He et al., ICCV 2015)."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        stages: list[nn.Module] = []
        channels = 16
        for stage, out in enumerate((16, 32, 64)):
            for block in range(blocks):
                stages.append(CifarBlock(channels, out, 2 if stage > 0 and block == 0 else 1))
                channels = out
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> pooled features [B, 64], all >= 0."""
        return self.stages(self.stem(images)).mean((2, 3))
