"""What a file of weights says of the encoder that it does not fit, and the way out that is named."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import assert_equal
from torch import Tensor

from lewel.errors import LewelError
from lewel.methods import encoders, matching
from lewel.recipe.schema import EncoderSettings
from lewel.run import weight_files

VIT = {
    "cls_token": torch.ones(1, 1, 8),
    "pos_embed": torch.ones(1, 17, 8),
    "patch_embed.proj.weight": torch.ones(8, 3, 16, 16),
    "blocks.0.norm1.weight": torch.ones(8),
}


@pytest.fixture(autouse=True)
def none_is_a_resnet(monkeypatch):
    """For a remedy tries them all, which takes seconds."""
    monkeypatch.setattr(matching, "RESNETS", ())


def matched(given: dict[str, Tensor], own: dict[str, Tensor] = VIT) -> matching.Match:
    return matching.match(own, frozenset(), given, "w.pth")


@pytest.mark.parametrize(
    "spare",
    ["mask_token", "masked_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight", "decoder.0.weight",
     "head_dist.weight", "lm_head.weight", "aux_head.weight", "fc2.weight", "mlp.0.weight", "top_layer.weight",
     "projection_mlp.0.weight", "projection_head.0.weight", "online_classifier.weight", "projector.0.weight",
     "prediction_head.0.weight", "momentum_predictor.0.weight", "prototypes.weight", "queue2", "logit_scale"],
)  # fmt: skip
def test_heads_of_public_trainers_are_left_aside(spare):
    found = matched({f"module.{name}": value for name, value in {**VIT, spare: torch.ones(3)}.items()})
    assert_equal(found.values, VIT)
    assert found.aside == [spare]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dist_token": torch.ones(1, 1, 8), "pos_embed": torch.ones(1, 18, 8)},
         r"has no dist_token; shapes differ: pos_embed .*; it was trained with dist_token: choose an encoder that has"),
        ({"register_tokens": torch.ones(1, 4, 8)}, "it was trained with register_tokens: choose an encoder that has"),
        ({"pos_embed": torch.ones(1, 26, 8)}, "its positions are for another --data.image-size; nothing"),
        ({"blocks.1.norm1.weight": torch.ones(8)}, "the encoder has no blocks.1.norm1.weight; nothing was loaded"),
        ({"pos_embed": torch.ones(1, 26, 8), "other": torch.ones(1)}, "has no other; .* another --data.image-size; no"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_a_vit_that_differs_is_told_why(changes, sentence, prefix):
    with pytest.raises(LewelError, match=sentence):
        matched({f"{prefix}{name}": value for name, value in {**VIT, **changes}.items()})


def test_names_of_transformers_are_known():
    given = {"vit.embeddings.cls_token": VIT["cls_token"]}
    for name in ("vit.embeddings.patch_embeddings.projection.weight", "resnet.embedder.embedder.convolution.weight"):
        for there in ({name: torch.ones(1)}, {name: torch.ones(1), **given}):
            with pytest.raises(LewelError, match="its names are those of Hugging Face's transformers: take timm's"):
                matched(there)


@pytest.mark.parametrize(
    ("spare", "sentence"),
    [("conv1.0.weight", r"three convolutions: .*timm/resnet50d"), ("layer1.0.se.fc1.weight", r"timm/seresnet50")],
)
def test_a_resnet_that_only_timm_has_is_named(spare, sentence):
    own = encoders.build(EncoderSettings("tiny", "imagenet")).state_dict()
    with pytest.raises(LewelError, match=sentence):
        matched({f"module.{name}": value for name, value in {**own, spare: torch.ones(1)}.items()}, own)
    with pytest.raises(LewelError, match="the encoder has no other; where"):
        matched({**own, spare: torch.ones(1), "other": torch.ones(1)}, {**own, spare: torch.ones(1)})


def test_the_line_that_saves_a_file_without_spare_tensors_does_so(tmp_path):
    own = encoders.build(EncoderSettings("tiny", "imagenet")).state_dict()
    given = {name: value for name, value in own.items() if matching.COUNT not in name}
    spare = {"other.0.bias": torch.ones(1), "other.1.bias": torch.ones(1), "scale": torch.ones(1)}
    torch.save({"net": {f"module.{name}": value for name, value in {**given, **spare}.items()}}, tmp_path / "w.pth")
    with pytest.raises(LewelError, match=r"has no other\.0\.bias, other\.1\.bias, scale; where") as refused:
        matched(weight_files.read(tmp_path / "w.pth"), own)
    line = str(refused.value).split("without it: ")[1].split("; nothing was loaded")[0]
    exec(line.replace('"w.pth"', "OUT"), {"torch": torch, "FILE": tmp_path / "w.pth", "OUT": tmp_path / "out.pth"})
    assert_equal(matched(weight_files.read(tmp_path / "out.pth"), own).values, given)
