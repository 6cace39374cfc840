"""Encoders, images in and a feature map out: ResNets cut before global average pooling, timm's models, or one's own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lewel.errors import LewelError
from lewel.recipe import feature_maps, schema


class ResNet(nn.Sequential):
    """A ResNet without pooling and classifier: images (N, 3, H, W) -> feature map (N, channels, h, w), never negative.

    The map is taken after a ReLU. Weights are named as in torchvision.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], channels: int) -> None:
        super().__init__(layers)
        self.channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """The inherited forward; the compiler would skip PyTorch's own file and compile each block alone."""
        for layer in self:
            images = layer(images)
        return images


class Wrapped(nn.Module):
    """A module as an encoder: images (N, 3, S, S) -> the map (N, channels, h, w) that recipe.feature_maps.of finds.

    The map may be of either sign. Parameters that look lists as unused, such as a classifier's, are no longer trained:
    no gradient would ever reach them.
    """

    def __init__(self, model: nn.Module, look: feature_maps.Look) -> None:
        super().__init__()
        self.model = model
        self.channels, self.side = look.channels, look.side
        for name, parameter in model.named_parameters():
            if name in look.unused:
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return feature_maps.of(self.model, images)


Encoder = ResNet | Wrapped
"""What a Network holds: a module with channels, the width of its map."""


def wrap(module: nn.Module, image_size: int) -> Wrapped:
    """module as an encoder, its channels found by a pass over one black image of image_size pixels a side.

    module makes a map (N, C, h, w) of images (N, 3, S, S), or has timm's forward_features. Raises LewelError where it
    makes no map, cannot take such images, or is not in float32.
    """
    other = next((p.dtype for p in module.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise LewelError(
            f"an encoder trains in float32, and {type(module).__name__} has {other}; give it as .float(), and choose "
            "precision bf16 or fp16 for autocast"
        )
    try:
        return Wrapped(module, feature_maps.look(module, image_size))
    except LewelError:
        raise
    except Exception as error:  # whatever a module of somebody's own raises
        reason = (str(error).splitlines() or [""])[0]
        raise LewelError(
            f"{type(module).__name__} cannot take images (1, 3, {image_size}, {image_size}) "
            f"({type(error).__name__}: {reason}); an encoder makes a feature map of RGB images of data.image_size"
        ) from error


def build(settings: schema.EncoderSettings, image_size: int = 224) -> Encoder:
    """The encoder that settings name, with fresh weights.

    A timm model is initialised by timm and takes images of image_size pixels a side alone. ResNets take any size; their
    convolutions start Kaiming normal (fan out), their BN with weight 1 and bias 0.
    """
    if settings.from_timm:
        look = feature_maps.of_timm(settings.name, image_size)
        return Wrapped(feature_maps.timm_model(settings.name, image_size), look)
    if settings.name == "tiny":
        layers, channels = _tiny()
    else:
        resnet = torchvision.models.get_model(settings.name, weights=None)
        layers = OrderedDict[str, Any](resnet.named_children())
        channels = int(layers.pop("fc").in_features)
        del layers["avgpool"]
    if settings.stem != "imagenet":
        stride = 2 if settings.stem == "small2" else 1
        layers["conv1"] = nn.Conv2d(3, layers["conv1"].weight.shape[0], 3, stride, padding=1, bias=False)
        del layers["maxpool"]
    for module in layers["layer4"][0].modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (settings.last_stride,) * 2
    encoder = ResNet(layers, channels)
    if settings.zero_init_residual:
        for block in encoder.modules():
            if isinstance(block, (BasicBlock, Bottleneck)):
                nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    return encoder


def _tiny(width: int = 32) -> tuple[OrderedDict[str, Any], int]:
    """Layers of a ResNet with one BasicBlock a stage and half of ResNet-18's width, and the channels of its map."""
    layers = OrderedDict[str, Any](
        conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        layer1=nn.Sequential(BasicBlock(width, width)),
    )
    for stage in (2, 3, 4):
        shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
        layers[f"layer{stage}"] = nn.Sequential(BasicBlock(width, 2 * width, stride=2, downsample=shortcut))
        width *= 2
    return layers, width
