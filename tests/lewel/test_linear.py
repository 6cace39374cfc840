"""Linear evaluation: protocols, the choice of a rate, what is frozen, and what goes on where it was stopped."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from saved_runs import fill
from tiny_runs import TINY

import lewel
from lewel.data import one_view
from lewel.errors import LewelError
from lewel.evaluation import (
    at_end,
    cache,
    held_out,
    linear,
    linear_plan,
    linear_values,
    outcome,
    protocols,
    state,
    subject,
)
from lewel.evaluation.heads import Heads
from lewel.evaluation.linear import Settings
from lewel.evaluation.linear_values import Reached
from lewel.evaluation.protocols import GRID, PROTOCOLS
from lewel.recipe import presets
from lewel.run import folders
from lewel.run.preemption import Stopped
from lewel.run.session import prepare

FEW = {"rates": (0.1, 1.0, 10.0), "seeds": 2, "epochs": 4, "held_out": 0.3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> subject.Subject:
    """An encoder that nobody trained, and 48 images to learn from."""
    session = prepare(TINY, tmp_path_factory.mktemp("runs"))
    session.method.requires_grad_(False)
    fill(session.method, 0)
    return subject.of_session(session)


@pytest.fixture
def there(made, tmp_path) -> subject.Subject:
    """The same, with a folder of its own."""
    return replace(made, folder=tmp_path)


@pytest.mark.parametrize(
    ("protocol", "epochs", "rates"),
    [
        ("a", 50, {0: 0.4, 29: 0.4, 30: 0.04, 39: 0.04, 40: 0.004, 49: 0.004}),
        ("moco", 100, {0: 30, 59: 30, 60: 3, 79: 3, 80: 0.3, 99: 0.3}),
        ("b", 90, {0: 3.2, 45: 1.6, 30: 2.4, 60: 0.8, 89: 3.2 * 0.5 * (1 - 0.99939083)}),  # cos(pi 89 / 90)
    ],
)
def test_rates_of_the_protocols_are_those_of_their_sources(protocol, epochs, rates):
    """At the global batch of each, throughout an epoch."""
    known = PROTOCOLS[protocol]
    assert known.epochs == epochs
    for epoch, rate in rates.items():
        for step in (0, 7):
            peak = known.rate * known.batch_size / 256
            assert peak * known.factor(epoch, epochs, step, 8) == pytest.approx(rate, rel=1e-5)


def test_the_cosine_of_cached_features_falls_step_by_step():
    factors = [PROTOCOLS["cached"].factor(epoch, 3, step, 4) for epoch in range(3) for step in range(4)]
    assert factors[0] == 1
    assert factors[6] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert len(set(factors)) == 12


def test_other_epochs_have_the_steps_at_the_same_shares_of_them():
    factors = [PROTOCOLS["a"].factor(epoch, 10, 0, 1) for epoch in range(10)]
    assert factors == pytest.approx([1.0] * 6 + [0.1] * 2 + [0.01] * 2)


def test_only_protocol_b_has_larc_and_thirteen_rates_are_three_a_decade():
    assert [name for name, protocol in PROTOCOLS.items() if protocol.larc] == ["b"]
    assert [PROTOCOLS[name].batch_size for name in ("cached", "a", "b", "moco")] == [256, 256, 4096, 256]
    assert [f"{rate:.3g}" for rate in GRID[::3]] == ["0.01", "0.1", "1", "10", "100"]
    assert len(GRID) == 13


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"rates": (0.1, 0.0)}, "rates must be positive numbers, learning rates per 256 images, got 0.0"),
        ({"rates": (float("nan"),)}, "rates must be positive"),
        ({"rates": ("a",)}, "rates must be positive numbers, learning rates per 256 images, got 'a'"),
        ({"seeds": 0}, "seeds must be a whole number of 1 or more, got 0"),
        ({"epochs": -1}, "epochs must be a whole number of 1 or more, or 0 for that of the protocol, got -1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"held_out": 0.0}, "held_out must be above 0 and at most 0.5"),
        ({"held_out": 0.6}, "got 0.6"),
        ({"protocol": "c"}, "protocol must be one of cached, a, b, moco, got 'c'"),
        ({"resume": "yes"}, 'resume must be "auto"'),
        ({"resume": "auto"}, "resume is for protocols a, b and moco: the cached one keeps no state"),
        ({"protocol": ["a"]}, "protocol must be one of cached, a, b, moco, got ['a']"),
        ({"rates": (True,)}, "rates must be positive numbers, learning rates per 256 images, got True"),
        ({"held_out": True}, "held_out must be above 0 and at most 0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_computed(there, asked, sentence):
    with pytest.raises(LewelError) as error:
        linear.evaluate(there, Settings(**asked))
    assert sentence in str(error.value)
    assert not list(there.folder.iterdir())


def test_a_batch_of_augmented_images_is_one_that_the_processes_can_share_evenly(there):
    three = replace(there, world=replace(there.world, size=3))
    plan = linear_plan.plan(three, Settings("a", batch_size=32))
    assert plan.batch_size == 30
    assert plan.notes[0] == "the batch is 30 images, not 32, for 3 processes to share"
    assert linear_plan.plan(three, Settings(batch_size=32)).batch_size == 32
    with pytest.raises(LewelError, match="a batch of 2 images cannot be shared out to 3 processes"):
        linear_plan.plan(three, Settings("a", batch_size=2))


def test_a_batch_that_is_larger_than_the_set_is_the_set_and_rates_are_in_proportion(there):
    plan = linear_plan.plan(there, Settings("b", rates=(1.0, 0.5), seeds=2))
    assert (plan.batch_size, plan.steps, plan.epochs) == (48, 1, 90)
    assert plan.notes[0] == "the batch is 48 images, not 4,096, of the 48 training images"
    assert "0.1875 times those per 256 images; the protocol's batch has 4,096" in plan.notes[1]
    assert "(b): learning rates the protocol's 0.2 and 2 from 0.5 to 1 per 256 images, 2 seeds each" in plan.said
    assert plan.said.endswith("; ".join(plan.notes))
    assert plan.heads(*plan.rates) == [(0.5 * 48 / 256, 0), (0.5 * 48 / 256, 1), (48 / 256, 0), (48 / 256, 1)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param({}, "published: LEWEL_M, 200 epochs, protocol b: 68.4", id="as-published"),
        pytest.param({"seeds": 1, "rates": (0.1,)}, "published: LEWEL_M", id="another-grid"),
        pytest.param({"epochs": 1}, "no published value for these settings; LEWEL_M", id="epochs"),
        pytest.param({"batch_size": 64}, "no published value for these settings; LEWEL_M", id="batch"),
        pytest.param(
            {"step": None, "init": "torchvision"}, "no published value for these weights: they are of", id="torchvision"
        ),
        pytest.param(
            {"init": "w.pth"}, "no published value for these weights: they began with w.pth", id="begun-with-weights"
        ),
    ],
)
def test_a_published_value_is_that_of_the_protocol_s_settings_and_the_recipe_s_own_weights(there, asked, said):
    run = replace(presets.get("imagenet/lewel_m_200"), preset="imagenet/lewel_m_200", init=asked.pop("init", ""))
    sets = SimpleNamespace(bank=range(1_281_167))
    made = replace(there, run=run, sets=sets, epoch=200, step=asked.pop("step", 1))
    assert linear.KIND.published(made, Settings("b", **asked)).startswith(said)


def test_a_rate_is_written_to_its_digits_however_small_it_is(there):
    first, second = (linear_plan.plan(there, Settings(rates=rates)) for rates in ((1e-7, 2e-7), (3e-7, 4e-7)))
    assert (first.settings["rates"], second.settings["rates"]) == ([1e-7, 2e-7], [3e-7, 4e-7])
    assert "2 from 1e-07 to 2e-07 per 256 images" in first.said
    tiny = replace(PLAN, rates=(1e-7, 2e-7, 3e-7))
    values = linear_values.of(tiny, HISTORY, RESULT, GRID_REACHED, 10, 5)
    assert (values["rate"], [row["rate"] for row in values["grid"]]) == (2e-7, [1e-7, 2e-7, 3e-7])
    assert "learning rate 2e-07 per 256 images" in linear_values.more(values)[0]


def test_one_of_a_thing_is_said_so(there):
    one = linear_plan.plan(there, Settings(seeds=1, epochs=1, rates=(0.1,)))
    assert "learning rates 0.1 per 256 images, 1 seed each, 1 epoch of 1 step of 48 images" in one.said
    assert one.notes[-1] == "1 epoch, not the 500 that are enough for these images"
    assert linear_plan.plan(there, Settings("a", epochs=2)).notes[-1] == "2 epochs, not the protocol's 50"


def test_cached_features_are_trained_on_for_four_thousand_steps_or_thirty_epochs():
    assert [PROTOCOLS["cached"].epochs_for(steps) for steps in (16, 78, 5004)] == [250, 52, 30]


@pytest.mark.parametrize("protocol", ["cached", "a", "b"])
def test_the_encoder_is_left_as_it_is(there, protocol):
    before = {name: value.clone() for name, value in there.encoder.state_dict().items()}
    values = linear.evaluate(there, Settings(protocol, **FEW))
    assert 0 <= values["accuracy"] <= 100
    for name, value in there.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not there.encoder.training


def test_an_encoder_that_changes_itself_is_an_error(there, monkeypatch):
    first = next(there.encoder.parameters())
    features = subject.Subject.features

    def drifting(self, images):
        first.data.mul_(1.0000001).add_(1e-7)
        return features(self, images)

    monkeypatch.setattr(subject.Subject, "features", drifting)
    kept = first.data.clone()
    with pytest.raises(LewelError, match="the encoder is not what it was before"):
        linear.evaluate(there, Settings("a", **FEW))
    first.data.copy_(kept)


def test_the_whole_encoder_is_in_eval_mode_and_features_of_a_batch_are_computed_once(there, monkeypatch):
    """Of augmented images, for the heads of all rates and seeds: four epochs of one batch."""
    linear.evaluate(there, Settings(**FEW))  # the centre crops are cached then
    features, seen = subject.Subject.features, []

    def watched(self, images):
        seen.append((len(images), any(module.training for module in self.encoder.modules())))
        return features(self, images)

    monkeypatch.setattr(subject.Subject, "features", watched)
    linear.evaluate(there, Settings("a", **FEW))
    assert seen == [(48, False)] * 4


PLAN = linear_plan.Plan("cached", PROTOCOLS["cached"], (0.1, 1.0, 10.0), 2, 3, 48, 48, 0.1, ())
GRID_REACHED = Reached(
    [10.0, 20.0, 30.0, 40.0, 70.0, 80.0], [90.0] * 6, [50.0, 50.0, 60.0, 64.0, 61.0, 61.0], [True] * 6
)
RESULT = Reached([42.0, 44.0], [91.0, 93.0], [0.0, 0.0], [True, True])
HISTORY = [[30.0, 32.0], [50.0, 52.0], [42.0, 44.0]]


def test_the_last_epoch_is_the_result_and_the_best_is_told_beside_it():
    values = linear_values.of(PLAN, HISTORY, RESULT, GRID_REACHED, 10, 5)
    assert values["accuracy"] == 43
    assert values["last"] == {"top1": 43, "top1_std": pytest.approx(2**0.5, abs=1e-4), "top5": 92,
                              "top5_std": pytest.approx(2**0.5, abs=1e-4)}  # fmt: skip
    assert values["best"] == {"epoch": 2, "top1": 51, "top1_std": pytest.approx(2**0.5, abs=1e-4)}
    assert "best epoch: 2, with 51.00 +- 1.41 %, chosen on the test images themselves" in linear_values.more(values)
    assert linear_values.said(values) == "linear 43.00 +- 1.41 %, top-5 92.00 +- 1.41 %"


def test_the_rate_is_chosen_by_the_mean_on_held_out_images_and_never_by_the_test_images():
    """62 % of these at a rate of 1; on the test images 10 is better."""
    values = linear_values.of(PLAN, HISTORY, RESULT, GRID_REACHED, 10, 5)
    assert (values["rate"], values["choice"]["held_out"], values["choice"]["top1"]) == (1.0, 62, 35)
    assert values["edge"] == ""
    assert "learning rate 1 per 256 images, the best of 3 on 62.00 % of 5" in linear_values.more(values)[0]
    assert "not the protocol; expect .5 to 1 below it" in linear_values.more(values)[0]


def test_a_rate_at_the_end_of_the_grid_is_told():
    other = GRID_REACHED._replace(held_out=[50.0] * 5 + [99.0])
    values = linear_values.of(PLAN, HISTORY, RESULT, other, 10, 5)
    assert "the best rate is the highest of the grid; --rates has others" in linear_values.more(values)[0]


def test_a_rate_of_which_one_head_diverged_is_never_chosen():
    other = GRID_REACHED._replace(finite=[True, True, False, True, True, True])
    values = linear_values.of(PLAN, HISTORY, RESULT, other, 10, 5)
    assert values["rate"] == 10
    assert values["grid"][1] == {"rate": 1.0}
    with pytest.raises(LewelError, match="all 3 learning rates diverged, the lowest"):
        linear_values.of(PLAN, HISTORY, RESULT, other._replace(finite=[False] * 6), 10, 5)


def test_of_fewer_than_five_classes_there_is_no_top_5():
    values = linear_values.of(PLAN, HISTORY, RESULT, GRID_REACHED, 4, 5)
    assert set(values["last"]) == {"top1", "top1_std"}
    assert linear_values.said(values) == "linear 43.00 +- 1.41 %"


def test_one_seed_has_no_deviation():
    plan = replace(PLAN, seeds=1, rates=(0.1, 1.0))
    one = Reached([1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [True, True])
    values = linear_values.of(plan, [[1.0]], one.part(0, 1), one, 10, 5)
    assert linear_values.said(values) == "linear 1.00 %, top-5 3.00 %"


def test_the_published_rate_is_the_result_and_the_grid_is_told_second(there):
    values = linear.evaluate(there, Settings("b", **FEW))
    assert values["rate"] == 0.2
    assert [row["rate"] for row in values["grid"]] == [0.1, 1.0, 10.0]
    first, second, best = linear_values.more(values)
    assert first == "protocol b: mean of 2 seeds, 4 epochs, learning rate 0.2 per 256 images, its own"
    assert second.startswith("the best rate of a grid of 3 is ")
    assert best.startswith("best epoch: ")


def test_held_out_images_are_seen_by_the_result_and_by_no_head_of_the_grid(there, monkeypatch):
    """Their features are changed: the heads of the grid are right of the same test images, those of the result not."""
    settings = Settings(**FEW)
    plain = linear.evaluate(there, settings)

    def blurred(features, split):
        if split == "train":
            features.rows[held_out.split(features.labels, 0.3, linear.SEED)[1]] = 7.0
        return features

    features_like(there, monkeypatch, blurred)
    changed = linear.evaluate(there, settings)
    assert [row["top1"] for row in changed["grid"]] == [row["top1"] for row in plain["grid"]]
    assert changed["last"] != plain["last"]


def features_like(there, monkeypatch, change) -> None:
    """Has linear evaluation find what change makes of the cached features of a split."""
    found = {split: change(cache.features_of(there, split), split) for split in ("train", "test")}
    monkeypatch.setattr(linear, "features_of", lambda _, split, tell: found[split])


@pytest.mark.parametrize("size", [2.0**-10, 2.0**9, None], ids=["small", "large", "by-their-own-scale"])
def test_cached_rates_mean_the_same_whatever_the_size_of_features(there, monkeypatch, size):
    """A power of two changes no digit of them; the heads are the same to rounding."""
    settings = Settings(**FEW)
    plain = linear.evaluate(there, settings)

    def sized(features, split):
        if size is None:
            return replace(features, scale=1000.0)
        return replace(features, rows=features.rows.float() * size)

    features_like(there, monkeypatch, sized)
    assert linear.evaluate(there, settings) == plain


def test_features_of_zeros_are_no_error(there, monkeypatch):
    features_like(there, monkeypatch, lambda features, split: replace(features, rows=torch.zeros_like(features.rows)))
    assert linear.evaluate(there, Settings(**FEW))["rate"] in FEW["rates"]


@pytest.mark.parametrize("protocol", ["cached", "a"])
def test_images_that_could_not_be_read_are_trained_on_by_no_head_and_counted_nowhere(there, monkeypatch, protocol):
    """The features lack every third image, and the loader shows another in its place, without a label."""
    settings, shown = Settings(protocol, **FEW), []

    def without(features, split):
        left = features.indices % 3 != 1
        return replace(features, rows=features.rows[left], labels=features.labels[left], indices=features.indices[left])

    train = without(cache.features_of(there, "train"), "train")
    step = Heads.step

    def watched(heads, rows, labels, factor, held):
        shown.append((labels.clone(), held.clone()))
        return step(heads, rows, labels, factor, held)

    def unlabelled(views, key):
        batch = view(views, key)
        return batch._replace(labels=torch.where(batch.indices % 3 != 1, batch.labels, -1))

    view = one_view._InMemory.__getitem__
    features_like(there, monkeypatch, without)
    monkeypatch.setattr(one_view._InMemory, "__getitem__", unlabelled)
    monkeypatch.setattr(Heads, "step", watched)
    values = linear.evaluate(there, settings)
    _, out = held_out.split(train.labels, 0.3, linear.SEED)
    assert values["held_out"] == len(out)
    for labels, held in shown:
        assert sum(labels >= 0) == len(train.labels) == 32
        assert labels[held].sort().values.equal(train.labels[out].sort().values)


@pytest.mark.parametrize("protocol", ["a", "b", "moco"])
def test_heads_of_a_grid_are_not_shown_what_their_rate_is_chosen_by(there, monkeypatch, protocol):
    """Beside a published rate, on augmented images; the steps have the protocol's factors."""
    step, shown, factors = Heads.step, [], []

    def watched(heads, rows, labels, factor, held):
        shown.append(labels[held])
        factors.append(factor)
        return step(heads, rows, labels, factor, held)

    monkeypatch.setattr(Heads, "step", watched)
    linear.evaluate(there, Settings(protocol, **FEW))
    labels = there.labels("train")
    _, out = held_out.split(labels, 0.3, linear.SEED)
    assert len(shown) == 4
    assert all(of_step.sort().values.equal(labels[out].sort().values) for of_step in shown)
    assert factors == [PROTOCOLS[protocol].factor(epoch, 4, 0, 1) for epoch in range(4)]
    assert factors[0] > factors[-1]


@pytest.mark.parametrize("protocol", ["cached", "a"])
def test_a_rate_is_chosen_by_training_images_that_are_held_out(there, monkeypatch, protocol):
    """What is right is counted on the test images, and on these alone of the training images."""
    correct, counted = Heads.correct, []

    def best_of_these(heads, rows, labels, top=1, scale=1.0):
        """The second rate is best on the held-out images, the last one on the test images."""
        found = torch.zeros_like(correct(heads, rows, labels, top, scale))
        counted.append(sorted(labels.tolist()))
        if len(heads.heads) >= 6:
            place = 2 if counted[-1] == held else 4
            found[len(found) - 6 + place :][:2] = 5
        return found

    train, test = there.labels("train"), there.labels("test")
    held = sorted(train[held_out.split(train, 0.3, linear.SEED)[1]].tolist())
    monkeypatch.setattr(Heads, "correct", best_of_these)
    values = linear.evaluate(there, Settings(protocol, **FEW))
    assert values["choice"]["rate"] == 1.0
    assert {tuple(labels) for labels in counted} == {tuple(held), tuple(sorted(test.tolist()))}


def test_images_are_cropped_and_flipped_and_nothing_else(there, monkeypatch):
    view, seen = one_view.one_view, []
    monkeypatch.setattr(one_view, "one_view", lambda images, how, *given: seen.append(how) or view(images, how, *given))
    linear.evaluate(there, Settings("a", **FEW))
    assert seen == [one_view.augmentation(there.run)]
    assert seen != [there.run.data.augmentation]


class Stop(Exception):
    pass


@pytest.mark.parametrize("protocol", ["a", "b"])
def test_an_evaluation_that_was_stopped_ends_as_one_that_was_not(there, tmp_path, monkeypatch, protocol):
    settings = Settings(protocol, **FEW)
    whole = linear.evaluate(there, settings)
    linear.KIND.done(there, settings)
    save, weights = state.save, []

    def save_then_stop(path, content):
        save(path, content)
        if content["epoch"] == 2:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save_then_stop)
        with pytest.raises(Stop):
            linear.evaluate(there, settings)
    (_,) = (tmp_path / "eval").glob("*.unfinished.pt")
    with pytest.raises(LewelError, match=r"was stopped after epoch 2; continue it by --resume auto"):
        linear.evaluate(there, settings)
    with pytest.raises(LewelError, match="with other settings"):
        linear.evaluate(there, replace(settings, seeds=3, resume="auto"))
    finite = linear.Heads.finite

    def kept(heads):
        weights.append(heads.weights.clone())
        return finite(heads)

    monkeypatch.setattr(linear.Heads, "finite", kept)
    assert linear.evaluate(there, replace(settings, resume="auto")) == whole
    linear.KIND.done(there, settings)
    assert not list((tmp_path / "eval").glob("*.unfinished.pt"))
    linear.evaluate(there, settings)
    assert torch.equal(weights[0], weights[-1])


def stop_after(epoch: int, patch, by: str = "SIGTERM") -> None:
    """Has a signal come once the state of so many epochs is saved."""
    save = state.save

    def save_then_stop(path, content):
        save(path, content)
        if content["epoch"] == epoch:
            patch.setattr(Heads, "step", interrupted)

    def interrupted(*_):
        raise Stopped(by)

    patch.setattr(state, "save", save_then_stop)
    if not epoch:
        patch.setattr(Heads, "step", interrupted)


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
def test_a_signal_says_what_is_saved_and_how_to_go_on(there, monkeypatch, by):
    settings = Settings("a", **FEW)
    for epoch, said in ((0, "no epoch is saved yet; 2 parts of the features are kept in "),
                        (2, "epoch 2 of 4 is saved, and --resume auto goes on from there")):  # fmt: skip
        with monkeypatch.context() as patch:
            stop_after(epoch, patch, by)
            with pytest.raises(Stopped, match=said) as stopped:
                linear.evaluate(there, settings)
        assert stopped.value.by == by
    with pytest.raises(LewelError, match="was stopped after epoch 2; continue it by --resume auto"):
        linear.KIND.planned(there, settings)
    said = linear.KIND.planned(there, replace(settings, resume="auto"))
    assert said.splitlines()[1].startswith("goes on after epoch 2, the last that ")


@pytest.mark.parametrize("changed", ["weights", "precision", "flip"])
def test_what_was_stopped_goes_on_with_nothing_that_has_changed(there, monkeypatch, changed):
    settings = Settings("a", **FEW)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stopped):
            linear.evaluate(there, settings)
    encoder, run = there.encoder, there.run
    if changed == "weights":
        encoder = copy.deepcopy(encoder)
        next(encoder.parameters()).data.add_(1)
    elif changed == "precision":
        run = replace(run, precision="bf16")
    else:
        run = replace(run, data=replace(run.data, augmentation=replace(run.data.augmentation, flip=0.25)))
    other = replace(there, encoder=encoder, run=run, kept={})
    with pytest.raises(LewelError, match=rf"with other settings \({changed}: [\w.]+ -> [\w.]+\)"):
        linear.evaluate(other, replace(settings, resume="auto"))


def test_a_run_ends_with_its_linear_accuracy_and_python_has_the_values(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(protocols, "ENOUGH", 40)
    run = replace(TINY, epochs=1, linear_at_end=True)
    trained = lewel.train(config=run, out=tmp_path / "run")
    (result,) = outcome.newest(trained.folder, "linear-cached")
    told = f"linear, after 1 epoch                  {result['accuracy']:.1f} %"
    assert told in capfd.readouterr().out
    assert told in (trained.folder / "report.txt").read_text()
    assert trained.session.method.training
    values = lewel.eval("linear", trained.folder, rates=[0.1, 1.0], seeds=1, epochs=2, held_out=0.3)
    assert len(values["grid"]) == 2
    assert len(outcome.newest(trained.folder, "linear-cached")) == 2


@pytest.mark.parametrize("asked", ["settings", "weights"])
def test_a_run_ends_with_no_other_linear_accuracy_than_that_of_its_weights_and_settings(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(protocols, "ENOUGH", 40)
    folder, run = tmp_path / "run", replace(TINY, epochs=1)
    lewel.train(config=run, out=folder)
    if asked == "settings":
        lewel.eval("linear", folder, rates=[1e-7], seeds=1)
    else:  # a result of other weights after as many steps
        assert lewel.eval("linear", folder)["accuracy"] >= 0
        (path,) = (folder / "eval").glob("linear-*.json")
        path.write_text(path.read_text().replace('"weights": "', '"weights": "0'))
    (before,) = outcome.newest(folder, "linear-cached")
    session = folders.load(folder)
    assert at_end.accuracy(session) is None
    at_end.evaluate(session)
    assert session.method.training
    (mine,) = (each for each in outcome.newest(folder, "linear-cached") if each["file"] != before["file"])
    assert at_end.accuracy(session) == mine["accuracy"]
    assert len(mine["settings"]["rates"]) == 13
    monkeypatch.setattr(linear, "evaluate", None)  # is not called again
    at_end.evaluate(session)


def test_the_report_of_a_run_survives_a_linear_evaluation_that_fails(tmp_path, monkeypatch, capfd):
    def fails(*_):
        raise OSError(28, "No space left on device", "run/eval/x")

    monkeypatch.setattr(linear, "features_of", fails)
    run = replace(TINY, epochs=1, linear_at_end=True)
    trained = lewel.train(config=run, out=tmp_path / "run")
    printed = capfd.readouterr().out
    assert "training has finished and is saved, but there is no linear accuracy: run/eval/x: No space left" in printed
    assert trained.finished
    assert "linear, after" not in (trained.folder / "report.txt").read_text()
