from __future__ import annotations

import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from lewel.errors import LewelError
from lewel.methods import encoders
from lewel.recipe import feature_maps
from lewel.recipe.checks import check
from lewel.recipe.schema import Data, EncoderSettings, Train


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
        ("resnext50_32x4d", "imagenet", 2, 64, (2048, 2, 2)),
        ("resnext50_32x4d", "small2", 1, 32, (2048, 4, 4)),
        ("wide_resnet50_2", "imagenet", 2, 64, (2048, 2, 2)),
    ],
)
def test_maps_have_the_size_that_stem_and_stages_give(name, stem, last_stride, size, shape):
    encoder = encoders.build(EncoderSettings(name, stem, last_stride)).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, size, size))
    assert features.shape[1:] == shape
    for side in (size, size + 1):
        run = Train(encoder=EncoderSettings(name, stem, last_stride), data=Data(image_size=side))
        assert run.map_side == encoder(torch.randn(1, 3, side, side)).shape[2] == -(-side // run.encoder.stride)
    assert encoder.channels == shape[0]
    assert features.min() >= 0


def test_parameters_are_those_of_torchvision_without_the_classifier():
    theirs = torchvision.models.resnet18().state_dict()
    mine = encoders.build(EncoderSettings("resnet18", "imagenet")).state_dict()
    assert {key: value.shape for key, value in theirs.items() if "fc." not in key} == {
        key: value.shape for key, value in mine.items()
    }


def test_gap_of_the_map_is_what_torchvision_classifies():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().eval()
    encoder = encoders.build(EncoderSettings("resnet18", "imagenet")).eval()
    encoder.load_state_dict({key: value for key, value in resnet.state_dict().items() if "fc." not in key})
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(resnet.fc(encoder(images).mean((2, 3))), resnet(images))


@pytest.mark.parametrize("stem", ["imagenet", "small", "small2"])
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_stems_are_convolutions_without_bias_and_only_the_large_one_pools(name, stem):
    encoder = encoders.build(EncoderSettings(name, stem))
    stride, side = {"imagenet": (2, 7), "small": (1, 3), "small2": (2, 3)}[stem]
    assert encoder.conv1.kernel_size == (side, side)
    assert encoder.conv1.stride == (stride, stride)
    assert encoder.conv1.padding == (side // 2, side // 2)
    assert hasattr(encoder, "maxpool") == (stem == "imagenet")
    assert not [key for key, _ in encoder.named_parameters() if key.endswith("bias") and "conv" in key]


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_convolutions_start_kaiming_normal_by_their_fan_out(name):
    torch.manual_seed(0)
    for module in encoders.build(EncoderSettings(name)).modules():
        if isinstance(module, torch.nn.Conv2d):
            out, _, height, width = module.weight.shape
            assert module.weight.std().item() == pytest.approx((2 / (out * height * width)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", feature_maps.RESNETS[1:])
def test_every_resnet_is_torchvisions(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        mine = encoders.build(EncoderSettings(name, "imagenet")).state_dict()
    assert {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")} == {
        key: value.shape for key, value in mine.items()
    }


class TestTimm:
    @pytest.mark.parametrize(
        ("name", "size", "shape"),
        [
            ("vit_tiny_patch16_224", 64, (192, 4, 4)),
            ("vit_small_patch14_reg4_dinov2", 56, (384, 4, 4)),
            ("swin_tiny_patch4_window7_224", 64, (768, 2, 2)),
            ("convnext_atto", 64, (320, 2, 2)),
            ("efficientnet_b0", 64, (1280, 2, 2)),
        ],
    )
    def test_models_make_maps_at_any_size_as_the_recipe_says(self, name, size, shape):
        settings = EncoderSettings(f"timm/{name}", "imagenet")
        encoder = encoders.build(settings, size)
        assert encoder.eval()(torch.randn(2, 3, size, size)).shape == (2, *shape)
        assert encoder.channels == shape[0]
        assert Train(encoder=settings, data=Data(image_size=size)).map_side == encoder.side == shape[1]

    def test_the_map_is_the_patch_tokens_in_rows_without_class_and_registers(self):
        encoder = encoders.build(EncoderSettings("timm/vit_small_patch14_reg4_dinov2", "imagenet"), 56).eval()
        images = torch.randn(2, 3, 56, 56)
        tokens = encoder.model.forward_features(images)
        assert tokens.shape == (2, 5 + 16, 384)
        assert torch.equal(encoder(images)[:, :, 1, 2], tokens[:, 5 + 1 * 4 + 2])

    def test_a_map_with_channels_last_is_turned(self):
        encoder = encoders.build(EncoderSettings("timm/swin_tiny_patch4_window7_224", "imagenet"), 64).eval()
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(encoder(images), encoder.model.forward_features(images).permute(0, 3, 1, 2))

    def test_what_the_map_does_not_depend_on_is_not_trained(self):
        encoder = encoders.build(EncoderSettings("timm/convnext_atto", "imagenet"), 64)
        encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
        assert {n for n, p in encoder.named_parameters() if not p.requires_grad} == {
            "model.head.norm.weight", "model.head.norm.bias",
        }  # fmt: skip
        assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)

    @pytest.mark.parametrize(
        ("name", "size", "sentence"),
        [
            ("timm/vit_smal_patch16_224", 64, "timm has no such model; did you mean timm/vit_small_patch16_224 or"),
            ("timm/volo_d1_224", 64, r"encoder.name timm/volo_d1_224: .* feature map .* but VOLO makes \(1, 17, 384\)"),
            ("timm/crossvit_9_240", 240, "but CrossVit makes list"),
            ("timm/vit_tiny_patch16_224", 16, "the feature map is one position, .* choose a larger one"),
            ("resnet51", 64, "there is no encoder.name resnet51; did you mean resnet50"),
            ("alexnet", 64, "there is no encoder.name alexnet; there are tiny, resnet18, .* and timm/NAME"),
        ],
    )
    def test_what_makes_no_map_is_a_sentence_before_any_data_are_read(self, name, size, sentence):
        with pytest.raises(LewelError, match=sentence):
            check(Train(encoder=EncoderSettings(name, "imagenet"), data=Data(image_size=size)))

    @pytest.mark.parametrize(
        ("stem", "last_stride", "sentence"),
        [
            ("small", 2, "encoder.stem small changes ResNets, .* add --encoder.stem imagenet"),
            ("imagenet", 1, "encoder.last_stride 1 changes ResNets, .* add --encoder.last-stride 2"),
        ],
    )
    def test_settings_of_resnets_are_refused(self, stem, last_stride, sentence):
        with pytest.raises(LewelError, match=sentence):
            check(Train(encoder=EncoderSettings("timm/resnet18", stem, last_stride)))

    def test_where_timm_is_not_installed_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(LewelError, match=r'pip install "lewel\[timm\]"'):
            check(Train(encoder=EncoderSettings("timm/resnet26", "imagenet")))


class TestWrap:
    def test_any_module_that_makes_a_map_is_an_encoder_and_stays_as_it_is(self):
        module = nn.Sequential(nn.Conv2d(3, 5, 3, stride=4), nn.BatchNorm2d(5), nn.Dropout())
        module[2].eval()
        state = {name: value.clone() for name, value in module.state_dict().items()}
        encoder = encoders.wrap(module, 32)
        assert (encoder.channels, encoder.side) == (5, 8)
        assert [part.training for part in module] == [True, True, False]
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(encoder.eval()(images), module(images))

    def test_a_timm_model_is_asked_for_its_features(self):
        assert encoders.wrap(timm.create_model("vit_tiny_patch16_224", img_size=32), 32).channels == 192

    @pytest.mark.parametrize(
        ("module", "made"),
        [
            (torchvision.models.resnet18(), r"ResNet makes \(1, 1000\) of \(1, 3, 32, 32\)"),
            (nn.Flatten(2), r"Flatten makes \(1, 3, 1024\)"),
        ],
        ids=["classifier", "tokens"],
    )
    def test_what_makes_none_is_a_sentence(self, module, made):
        with pytest.raises(LewelError, match=made):
            encoders.wrap(module, 32)
