from __future__ import annotations

import pytest
import torch
import torchvision

from lewel.methods import encoders
from lewel.recipe.schema import Data, Encoder, Train


@pytest.mark.parametrize(
    ("name", "stem", "last_stride", "size", "shape"),
    [
        ("tiny", "small", 2, 32, (256, 4, 4)),
        ("tiny", "small2", 2, 64, (256, 4, 4)),
        ("tiny", "imagenet", 2, 64, (256, 2, 2)),
        ("resnet18", "small", 2, 32, (512, 4, 4)),
        ("resnet18", "imagenet", 2, 96, (512, 3, 3)),
        ("resnet50", "imagenet", 2, 64, (2048, 2, 2)),
        ("tiny", "small2", 1, 64, (256, 8, 8)),
        ("resnet50", "imagenet", 1, 64, (2048, 4, 4)),
    ],
)
def test_maps_have_the_size_that_stem_and_stages_give(name, stem, last_stride, size, shape):
    encoder = encoders.build(Encoder(name, stem, last_stride)).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, size, size))
    assert features.shape[1:] == shape
    for side in (size, size + 1):
        run = Train(encoder=Encoder(name, stem, last_stride), data=Data(image_size=side))
        assert run.map_side == encoder(torch.randn(1, 3, side, side)).shape[2] == -(-side // run.encoder.stride)
    assert encoder.channels == shape[0]
    assert features.min() >= 0


def test_parameters_are_those_of_torchvision_without_the_classifier():
    theirs = torchvision.models.resnet18().state_dict()
    mine = encoders.build(Encoder("resnet18", "imagenet")).state_dict()
    assert {key: value.shape for key, value in theirs.items() if "fc." not in key} == {
        key: value.shape for key, value in mine.items()
    }


def test_gap_of_the_map_is_what_torchvision_classifies():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().eval()
    encoder = encoders.build(Encoder("resnet18", "imagenet")).eval()
    encoder.load_state_dict({key: value for key, value in resnet.state_dict().items() if "fc." not in key})
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(resnet.fc(encoder(images).mean((2, 3))), resnet(images))


@pytest.mark.parametrize("stem", ["imagenet", "small", "small2"])
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_stems_are_convolutions_without_bias_and_only_the_large_one_pools(name, stem):
    encoder = encoders.build(Encoder(name, stem))
    stride, side = {"imagenet": (2, 7), "small": (1, 3), "small2": (2, 3)}[stem]
    assert encoder.conv1.kernel_size == (side, side)
    assert encoder.conv1.stride == (stride, stride)
    assert encoder.conv1.padding == (side // 2, side // 2)
    assert hasattr(encoder, "maxpool") == (stem == "imagenet")
    assert not [key for key, _ in encoder.named_parameters() if key.endswith("bias") and "conv" in key]


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_convolutions_start_kaiming_normal_by_their_fan_out(name):
    torch.manual_seed(0)
    for module in encoders.build(Encoder(name)).modules():
        if isinstance(module, torch.nn.Conv2d):
            out, _, height, width = module.weight.shape
            assert module.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.1)
