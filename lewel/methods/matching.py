"""Which tensors of a file are those of an encoder of ours, under whatever prefix it has them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lewel.errors import LewelError
from lewel.methods import encoders
from lewel.recipe.feature_maps import RESNETS
from lewel.recipe.schema import EncoderSettings

# What stands beside an encoder in the files of classifiers and of self-supervised methods.
HEAD = re.compile(
    r"(fc\d*|fc_norm|heads?|head_\w+|\w+_heads?|mlp|linear|last_linear|(\w+_)?classifier|top_layer\d*|aux\d?|AuxLogits"
    r"|(\w+_)?projector|projection(_\w+)?|proj|neck|(\w+_)?predictor|prediction(_\w+)?|pred|prototypes|queue\w*"
    r"|logit_scale|mask_token|masked_embed|decoder(_\w+)?)(\.|$)"
)
FOLLOWER = re.compile(r"target|teacher|momentum|key|encoder_k|ema(\b|_)|_ema|shadow")
TOKEN = re.compile(r"(dist|cls|reg|register|storage)_tokens?")  # every image's beside its patches
ODD = (
    "cannot be taken, being sparse, quantized, nested, sharded or without values; save plain tensors, as to_dense(), "
    "dequantize() and full_tensor() make them"
)
SIGNS = {  # in names that the encoder has not
    r"patch_embeddings\.projection|embedder\.convolution": (
        "its names are those of Hugging Face's transformers: take timm's or torchvision's file of these weights"
    ),
    r"\bconv1\.0\.weight": "its stem has three convolutions: choose timm's encoder of them, such as timm/resnet50d",
    r"\blayer1\.0\.se\.": "it has squeeze-and-excitation: choose timm's encoder with it, such as timm/seresnet50",
}
COUNT = "num_batches_tracked"
NUMBERS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


class Match(NamedTuple):
    """The tensors of a file that are an encoder's."""

    values: dict[str, Tensor]
    """by the encoder's own names"""
    prefix: str
    """what stands before them in the file"""
    aside: list[str]
    """other tensors of the same network: its classifier or its heads"""


class _Place(NamedTuple):
    """One network of a file; the best is the largest."""

    fitting: int  # tensors of the right name and shape
    named: int  # of the right name
    leads: bool  # whether it is no momentum network
    prefix: str
    names: dict[str, str]  # the encoder's to the file's


def match(own: Mapping[str, Tensor], unused: frozenset[str], given: Mapping[str, Tensor], source: str) -> Match:
    """The tensors for own, the state dict of an encoder, among the tensors given of a file.

    Names may be torchvision's or timm's, as own's are, detectron2's, or the numbers of a Sequential, with any prefix.
    Of an online and a momentum network the online one is taken. num_batches_tracked may be absent, and so may the
    parameters unused, which the map does not depend on. A tensor on the meta device has no values that could be taken.
    Raises LewelError, which begins with source, where anything else of the encoder is missing or of another shape,
    where the file's network is more than an encoder and heads, and for values that are not finite.
    """
    unread = [name for name, value in given.items() if value.is_meta]
    odd = f"; {some(unread)} {ODD}" if unread else ""
    given = {name: value for name, value in given.items() if not value.is_meta}
    places = _places(own, given)
    if not places:
        raise LewelError(
            f"{source} holds no weight of the encoder: there is {some(given) or 'no plain tensor at all'}, and the "
            f"encoder has {some(own)}{odd or _kin(own, given)}; nothing was loaded"
        )
    place = places[0]
    problems = _problems(own, unused, given, place)
    if problems:
        remedy = odd or _remedy(own, given, place, alone=len(problems) == 1)
        raise LewelError(f"{source} does not fit the encoder: {'; '.join(problems)}{remedy}; nothing was loaded")
    twins = [other for other in places[1:] if other[:3] == place[:3] and not _same(other, place, given)]
    if twins:
        named = some(f"{other.prefix}*" if other.prefix else "those without prefix" for other in (place, *twins))
        raise LewelError(f"{source} holds several networks that fit ({named}); save the one you mean alone")
    values = {name: given[there] for name, there in place.names.items() if _fits(given[there], own[name])}
    broken = [name for name, value in values.items() if not value.to(own[name].dtype).isfinite().all()]
    if broken:
        raise LewelError(f"{source} has weights that are not finite ({some(broken)}); nothing was loaded")
    taken = {place.names[name] for name in values}
    aside = [name for name in given if name.startswith(place.prefix) and name not in taken and COUNT not in name]
    return Match(values, place.prefix, [name.removeprefix(place.prefix) for name in aside])


def detectron2_name(name: str) -> str:
    """detectron2's name of a weight that torchvision names name: layer1.0.bn1.bias is res2.0.conv1.norm.bias."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    for number in (1, 2, 3, 4):
        name = name.replace(f"layer{number}.", f"res{number + 1}.").replace(f"bn{number}.", f"conv{number}.norm.")
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def numbered_name(name: str) -> str:
    """The name in nn.Sequential(*resnet.children()) of a weight that torchvision names name: layer1 is 4."""
    first, _, rest = name.partition(".")
    return f"{NUMBERS[first]}.{rest}" if first in NUMBERS else name


def some(items: Iterable[str], limit: int = 3) -> str:
    """The first items as text, and how many more there are."""
    items = list(items)
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")


def _places(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[_Place]:
    """The networks in a file that share names with own, the best first."""
    places = []
    for naming in (str, detectron2_name, numbered_name):
        known, found = {naming(name): name for name in own}, defaultdict[str, dict[str, str]](dict)
        for name in given:
            for end in [0, *(at.end() for at in re.finditer(r"\.", name))]:
                if name[end:] in known:
                    found[name[:end]][known[name[end:]]] = name
        for prefix, names in found.items():
            fitting = sum(_fits(given[there], own[name]) for name, there in names.items())
            places.append(_Place(fitting, len(names), FOLLOWER.search(prefix) is None, prefix, names))
    return sorted(places, key=lambda place: place[:3], reverse=True)


def _same(one: _Place, other: _Place, given: Mapping[str, Tensor]) -> bool:
    """Whether two places of a file hold the same weights, as where a module lies in another too."""
    return one.names.keys() == other.names.keys() and all(
        torch.equal(given[there], given[other.names[name]]) for name, there in one.names.items()
    )


def _problems(
    own: Mapping[str, Tensor], unused: frozenset[str], given: Mapping[str, Tensor], place: _Place
) -> list[str]:
    """What keeps the tensors at place from being all of the encoder own, in clauses."""
    spare = {name for name in own if name.endswith(COUNT) or (name in unused and HEAD.match(name))}
    missing = [name for name in own if name not in place.names and name not in spare | unused]
    unexpected = _unexpected(given, place)
    misshapen = [
        f"{name} is {_shape(given[there])}, the encoder's {_shape(own[name])}"
        for name, there in place.names.items()
        if name not in spare and not _fits(given[there], own[name])
    ]
    problems = [f"it lacks {some(missing)}"] if missing else []
    problems += [f"the encoder has no {some(unexpected)}"] if unexpected else []
    return problems + ([f"shapes differ: {some(misshapen)}"] if misshapen else [])


def _unexpected(given: Mapping[str, Tensor], place: _Place) -> list[str]:
    """The tensors of the network at place that are neither an encoder's nor a head's, without its prefix."""
    there = set(place.names.values())
    rest = [name.removeprefix(place.prefix) for name in given if name.startswith(place.prefix) and name not in there]
    return [name for name in rest if not HEAD.match(name) and not name.endswith(COUNT)]


def _remedy(own: Mapping[str, Tensor], given: Mapping[str, Tensor], place: _Place, *, alone: bool) -> str:
    """A clause that names the ResNet that the tensors given are of, or what else would help, or "".

    alone is whether the tensors at place have one problem only.
    """
    with torch.device("meta"):
        for name in RESNETS:
            for stem in ("imagenet", "small"):
                other = encoders.build(EncoderSettings(name, stem)).state_dict()
                places = _places(other, given)
                if places and not _problems(other, frozenset(), given, places[0]):
                    also = " (or small2)" if stem == "small" else ""
                    return f"; it fits --encoder.name {name} --encoder.stem {stem}{also}"
    kin = _kin(own, given)
    if kin:
        return kin
    unexpected = _unexpected(given, place)
    tokens = [name for name in unexpected if TOKEN.fullmatch(name)]
    if tokens:
        return f"; it was trained with {some(tokens)}: choose an encoder that has such a token"
    misshapen = [name for name, there in place.names.items() if not _fits(given[there], own[name])]
    if any("pos_embed" in name for name in misshapen):
        return "; its positions are for another --data.image-size"
    parts = {name.partition(".")[0] for name in unexpected}
    shared = parts & {name.partition(".")[0] for name in own}
    if not alone or not parts or shared or len(parts) > 3:
        return ""
    firsts = tuple(sorted({place.prefix + "".join(name.partition(".")[:2]) for name in unexpected}))
    return (
        "; where the map does not need that, save the file without it: from lewel.run.weight_files import read; "
        f'torch.save({{n: t for n, t in read(FILE).items() if not n.startswith({firsts})}}, "w.pth")'
    )


def _kin(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """A clause that names what the tensors given are of by signs in their names, or ""."""
    for sign, said in SIGNS.items():
        if any(re.search(sign, name) for name in given) and not any(re.search(sign, name) for name in own):
            return f"; {said}"
    return ""


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _shape(value: Tensor) -> str:
    shape = tuple(value.shape)
    return f"{shape}" if value.is_floating_point() else f"{shape} {str(value.dtype).removeprefix('torch.')}"
