"""The paper's ablation switches: each changes what it names, trains, and is refused where nothing would read it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from tiny_runs import TINY, run_in

from lewel import distributed
from lewel.errors import LewelError
from lewel.methods import losses
from lewel.methods.heads import MLP, CoupledHead, FixedMapsHead, SeparateHead
from lewel.methods.method import Embedding
from lewel.methods.method import Method as Model
from lewel.methods.momentum import split_bn
from lewel.methods.objectives import OBJECTIVES, Predict
from lewel.methods.objectives.contrast import MoCoHead
from lewel.recipe import checks
from lewel.recipe.schema import Heads, MethodSettings, Train

HEADS = Heads(hidden=16, num_maps=8, num_groups=2)


def recipe(heads: Heads, method: MethodSettings = TINY.method) -> Train:
    run = replace(TINY, heads=heads, method=method)
    checks.check(run)
    return run


def model(heads: Heads, method: MethodSettings = TINY.method) -> Model:
    torch.manual_seed(0)
    return Model(recipe(heads, method))


def views(side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(8, 3, side, side, generator=generator)
    return first, first + 0.1 * torch.randn(8, 3, side, side, generator=generator)


ABLATIONS = {
    "separate-head": (replace(HEADS, coupling="separate"), SeparateHead),
    "random-maps": (replace(HEADS, maps="random"), FixedMapsHead),
    "uniform-maps": (replace(HEADS, maps="uniform"), FixedMapsHead),
    "shared-projector": (replace(HEADS, semantic_projector="shared"), CoupledHead),
    "aligned-width": (replace(HEADS, aligned_width=12), CoupledHead),
    "one-group": (replace(HEADS, num_groups=1), CoupledHead),
    "sixteen-groups": (replace(HEADS, num_maps=16, num_groups=16), CoupledHead),
}


def test_uniform_maps_in_as_many_groups_as_maps_are_a_second_head_on_the_mean_of_the_map():
    """MoCo v2 with an extra head: one aligned vector an image, which is GAP."""
    method = model(replace(HEADS, maps="uniform", num_groups=8))
    images = views()[0]
    features = method.online.encoder(images)
    z, aligned = method.online(images)
    assert (z.shape, aligned.shape) == ((8, 8), (8, 1, 8))
    torch.testing.assert_close(aligned[:, 0], method.online.aligned_head(features.mean((2, 3))))


@pytest.mark.parametrize("loss", ["infonce", "byol"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_all_that_it_has(name, loss):
    heads, kind = ABLATIONS[name]
    method = model(heads, replace(TINY.method, loss=loss))
    assert type(method.online.head) is kind
    step = method(*views(), 0.9)
    step.loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.online.encoder.parameters())
    online = method.online(views()[0])
    assert online.aligned.shape == (8, heads.num_maps // heads.num_groups, heads.aligned_out)


def test_a_shared_projector_is_the_global_one():
    method = model(replace(HEADS, semantic_projector="shared"))
    assert not hasattr(method.online, "aligned_head")
    method.eval()
    features = method.online.encoder(views()[0])
    z, pooled = method.online.head(features)
    found = method.online(views()[0])
    torch.testing.assert_close(found.aligned, method.online.head.mlp(pooled.flatten(0, 1)).unflatten(0, (8, 4)))
    torch.testing.assert_close(found.z, z)


@pytest.mark.parametrize(("w_aligned", "kept"), [(1.0, "aligned"), (0.5, "both")])
@pytest.mark.parametrize("loss", ["infonce", "byol"])
def test_losses_are_global_aligned_or_both(loss, w_aligned, kept):
    step = model(HEADS, replace(TINY.method, loss=loss, w_aligned=w_aligned))(*views(), 0.9)
    parts = step.parts
    expected = parts["aligned"] if kept == "aligned" else 0.5 * (parts["global"] + parts["aligned"])
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize(("projector", "kind"), [("auto", MoCoHead), ("moco", MoCoHead), ("mlp", MLP)])
def test_the_projector_of_moco_v2_is_its_own_or_that_of_lewel(projector, kind):
    method = model(replace(HEADS, projector=projector), replace(TINY.method, w_aligned=0.0))
    assert type(method.online.head) is kind


def test_an_objective_brings_projectors_that_recipes_name(monkeypatch):
    """The first is its own default; runs of other objectives can name each, unless they have one of that name."""

    class First(MLP): ...

    class Second(MLP): ...

    class Own(Predict):
        projectors: ClassVar = {"first": First, "second": Second, "moco": Second}

    monkeypatch.setitem(OBJECTIVES, "own", Own)
    heads = {name: replace(HEADS, projector=name) for name in ("auto", "first", "second", "moco", "mlp")}
    kinds = {
        loss: [
            type(model(each, MethodSettings(loss=loss, w_aligned=0.0, queue=32)).online.head) for each in heads.values()
        ]
        for loss in ("own", "infonce")
    }
    assert kinds["own"] == [First, First, Second, Second, MLP]
    assert kinds["infonce"] == [MoCoHead, First, Second, MoCoHead, MLP]


@pytest.mark.parametrize(
    ("name", "answer"),
    [("simsian", "did you mean simsiam?"), ("x", "there are auto, mlp, moco, simsiam, simsiam2")],
)
def test_a_projector_that_there_is_none_of_is_refused(name, answer):
    run = replace(TINY, heads=replace(HEADS, projector=name), method=replace(TINY.method, w_aligned=0.0))
    for build in (checks.check, Model):
        with pytest.raises(LewelError, match=f"^there is no heads.projector {name}; {re.escape(answer)}"):
            build(run)


def test_random_maps_are_the_same_in_a_run_that_is_repeated(tmp_path):
    run = recipe(replace(HEADS, maps="random"))
    first, second = (run_in(tmp_path / name, replace(run, epochs=1)) for name in "ab")
    assert torch.equal(first.method.online.encoder.conv1.weight, second.method.online.encoder.conv1.weight)


@pytest.mark.parametrize("key_bn", ["plain", "split"])
@pytest.mark.parametrize("gathered", [False, True], ids=["own", "gathered"])
def test_negatives_of_the_second_of_two_processes_are_its_own_or_those_of_both(gathered, key_bn, monkeypatch):
    """Keys of the queue are always those of both. What the first process would send is made up."""
    method = model(HEADS, replace(TINY.method, gather_negatives=gathered, key_bn=key_bn))
    first, second = views()
    query, key = method.online(first), Embedding(*split_bn(method.target, second, 2 if key_bn == "split" else 1))

    def both(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.flip(0).cos(), x.detach()])

    for name, value in (("size", lambda: 2), ("rank", lambda: 1), ("gather", both)):
        monkeypatch.setattr(distributed, name, value)
    step = method(first, second, 1.0)
    torch.testing.assert_close(step.keys, both(key.z))
    expected = losses.info_nce(query.z, key.z, method.objective.queue.keys, 0.2)
    torch.testing.assert_close(step.parts["global"], expected)
    negatives, place = (both(key.aligned), 8) if gathered else (key.aligned, 0)
    expected = losses.aligned_info_nce(query.aligned, negatives, 0.2, first=place)
    torch.testing.assert_close(step.parts["aligned"], expected)


@pytest.mark.parametrize(
    ("changes", "processes", "key_bn"),
    [
        pytest.param({}, 1, "split", id="one-process"),
        pytest.param({}, 2, "shuffle", id="two-processes"),
        pytest.param({"batch_norm": "sync"}, 2, "plain", id="sync"),
        pytest.param({"target": "eman"}, 1, "plain", id="eman"),
        pytest.param({"target": "eman"}, 2, "plain", id="eman-in-two-processes"),
    ],
)
def test_keys_leak_nothing_by_the_batch_norm_that_auto_stands_for(changes, processes, key_bn, monkeypatch):
    """With EMAN a key does not depend on the images beside its own."""
    method = model(HEADS, replace(TINY.method, **changes))
    monkeypatch.setattr(distributed, "size", lambda: processes)
    assert method.objective.key_bn == key_bn
    method.objective.settings = replace(method.objective.settings, key_bn="plain")  # what is said is kept
    assert method.objective.key_bn == "plain"


@pytest.mark.parametrize("split_bn", [1, 2, 4])
def test_eman_keys_are_the_same_however_they_are_split(split_bn):
    """So auto, which does not split them, is exact."""
    plain, split = (
        model(HEADS, replace(TINY.method, target="eman", key_bn=key_bn, split_bn=split_bn)).double()
        for key_bn in ("auto", "split")
    )
    first, second = (view.double() for view in views())
    torch.testing.assert_close(plain(first, second, 0.9).keys, split(first, second, 0.9).keys)


def test_keys_without_groups_are_plain():
    method = model(HEADS, replace(TINY.method, key_bn="plain"))
    second = views()[1]
    step = method(*views(), 1.0)
    torch.testing.assert_close(step.keys, method.target(second).z)
    split = model(HEADS)(*views(), 1.0)
    assert not torch.allclose(step.keys, split.keys)
    assert losses.unit(step.keys).shape == split.keys.shape


@pytest.mark.parametrize(
    ("heads", "method", "sentence"),
    [
        pytest.param(
            replace(HEADS, maps="random"),
            MethodSettings(w_aligned=0.0),
            "heads.maps random says nothing",
            id="no-branch",
        ),
        pytest.param(
            replace(HEADS, projector="moco"), MethodSettings(), "projector moco has no alignment maps", id="moco-head"
        ),
        pytest.param(
            replace(HEADS, maps="uniform", coupling="separate"),
            MethodSettings(),
            "says how maps are learned",
            id="no-maps",
        ),
        pytest.param(
            replace(HEADS, semantic_projector="shared", aligned_width=4),
            MethodSettings(),
            "of width 8",
            id="shared-width",
        ),
        pytest.param(
            HEADS, MethodSettings(loss="byol", gather_negatives=True), "gather_negatives True says nothing", id="gather"
        ),
        pytest.param(
            HEADS, MethodSettings(key_bn="shuffle", queue=32), "shuffle needs several processes", id="shuffle"
        ),
    ],
)
def test_what_nothing_would_read_is_refused(heads, method, sentence):
    with pytest.raises(LewelError, match=sentence):
        checks.check(replace(TINY, heads=heads, method=replace(method, queue=32)))


@pytest.mark.parametrize(
    ("processes", "accumulate", "sentence"),
    [
        pytest.param(3, 1, "divisible by processes times accumulate, got 16 images, 3 processes", id="processes"),
        pytest.param(2, 3, "2 processes and 3 passes", id="passes"),
        pytest.param(8, 2, "leave one of 16 images to a pass", id="one-image"),
    ],
)
def test_images_that_cannot_be_shared_out_are_refused(processes, accumulate, sentence):
    with pytest.raises(LewelError, match=sentence):
        checks.check(replace(TINY, accumulate=accumulate), processes=processes)
