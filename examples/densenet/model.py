"""DenseNet-BC (Huang et al., CVPR 2017, arXiv 1608.06993): every layer reads the outputs of all layers before it."""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn.functional import relu

IMAGENET = {121: (6, 12, 24, 16), 201: (6, 12, 48, 32)}  # layers in each dense block


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution to 4 `growth` channels; norm, ReLU, 3x3 convolution to `growth` new channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(relu(self.norm2(self.conv1(relu(self.norm1(x))))))
        return cat([x, new], 1)


class Transition(nn.Module):
    """Between dense blocks: half the channels, half the rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(relu(self.norm(x))))


class DenseNet(nn.Module):
    """images (N, 3, rows, columns) -> scores (N, classes)."""

    def __init__(self, stem: nn.Module, channels: int, blocks: tuple[int, ...], growth: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        layers: list[nn.Module] = []
        for number, count in enumerate(blocks):
            if number:
                layers.append(Transition(channels))
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = relu(self.norm(self.layers(self.stem(images))))
        return self.classifier(features.mean((2, 3)))


def imagenet(depth: int) -> DenseNet:
    """DenseNet-121 or -201 for images of 224x224."""
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    stem = nn.Sequential(conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
    return DenseNet(stem, 64, IMAGENET[depth], growth=32, classes=1000)


def cifar(depth: int = 100, growth: int = 12) -> DenseNet:
    """DenseNet-BC for images of 32x32: three dense blocks, two convolutions a layer."""
    count = (depth - 4) // 6
    stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    return DenseNet(stem, 2 * growth, (count, count, count), growth, classes=10)
