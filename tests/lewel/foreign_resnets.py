"""ResNets with the module names of libraries that are no dependency, written down from their sources.

detectron2: modeling/backbone/resnet.py (a convolution holds its norm); mmsegmentation: models/backbones/resnet.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class NormedConv(nn.Conv2d):
    """detectron2's Conv2d."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Detectron2Block(nn.Module):
    def __init__(self, widths: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...], groups: int) -> None:
        super().__init__()
        if widths[0] != widths[-1]:
            self.shortcut = NormedConv(widths[0], widths[-1], 1, max(strides))
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            grouped = groups if i == 1 else 1
            setattr(self, f"conv{i + 1}", NormedConv(inputs, outputs, sizes[i], strides[i], grouped))
        self.depth = len(sizes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for i in range(2, self.depth + 1):
            out = getattr(self, f"conv{i}")(F.relu(out))
        return F.relu(out + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class MmsegBlock(nn.Module):
    def __init__(self, widths: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...], groups: int) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            grouped, padding = groups if i == 1 else 1, sizes[i] // 2
            convolution = nn.Conv2d(inputs, outputs, sizes[i], strides[i], padding, groups=grouped, bias=False)
            setattr(self, f"conv{i + 1}", convolution)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(outputs))
        self.downsample = None
        if widths[0] != widths[-1]:
            convolution = nn.Conv2d(widths[0], widths[-1], 1, max(strides), bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(widths[-1]))
        self.depth = len(sizes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        for i in range(2, self.depth + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(F.relu(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def stages(depth: int, block: type[nn.Module], groups: int, width_per_group: int) -> list[nn.Sequential]:
    """The stride is in the 3x3 convolution: STRIDE_IN_1X1 False, style pytorch."""
    made, before = [], 64
    for stage, count in enumerate(BLOCKS[depth]):
        width, blocks = 64 * 2**stage, []
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            if depth < 50:
                blocks.append(block((before, width, width), (3, 3), (stride, 1), 1))
                before = width
            else:
                inner = groups * width_per_group * 2**stage
                blocks.append(block((before, inner, inner, 4 * width), (1, 3, 1), (1, stride, 1), groups))
                before = 4 * width
        made.append(nn.Sequential(*blocks))
    return made


class Detectron2ResNet(nn.Module):
    """(N, 3, H, W) -> res5."""

    def __init__(self, depth: int, groups: int = 1, width_per_group: int = 64) -> None:
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = NormedConv(3, 64, 7, 2)
        self.res2, self.res3, self.res4, self.res5 = stages(depth, Detectron2Block, groups, width_per_group)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem.conv1(x)), kernel_size=3, stride=2, padding=1)
        return self.res5(self.res4(self.res3(self.res2(x))))


class MmsegResNet(nn.Module):
    """(N, 3, H, W) -> the last of its outputs; with groups it is its ResNeXt."""

    def __init__(self, depth: int, groups: int = 1, base_width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(depth, MmsegBlock, groups, base_width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
