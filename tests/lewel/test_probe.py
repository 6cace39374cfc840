"""The linear probe that is trained beside a method: what it learns, and that the method knows nothing of it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_runs import METHODS, TINY, assert_equal, assert_same, run_in
from torch import Tensor, nn

from lewel import data, distributed
from lewel.data.in_memory import MemoryViews
from lewel.errors import DataError
from lewel.evaluation import features
from lewel.methods.method import Method
from lewel.methods.objectives import SimSiam
from lewel.methods.objectives.base import Terms
from lewel.methods.probe import Probe
from lewel.recipe import presets
from lewel.recipe.schema import MethodSettings
from lewel.run import checkpoint, folders, session
from lewel.run.session import prepare
from lewel.watching import log

DRAW = torch.Generator().manual_seed(0)
CENTRES = 2 * torch.randn(4, 12, dtype=torch.float64, generator=DRAW)
SHORT = replace(TINY, epochs=2, knn_every=2, data=replace(TINY.data, embedded_train=32))


def batch(images: int = 32) -> tuple[Tensor, Tensor]:
    """Features (images, 12) float64 of four classes, and labels."""
    labels = torch.randint(4, (images,), generator=DRAW)
    return CENTRES[labels] + torch.randn(images, 12, dtype=torch.float64, generator=DRAW), labels


def taught(batches: list[tuple[Tensor, Tensor]], probe: Probe | None = None) -> Probe:
    probe = Probe(12, 4).double() if probe is None else probe
    for rows, labels in batches:
        probe.learn(rows, labels)
    return probe


class TestWhatItLearns:
    def test_the_gradient_is_that_of_the_mean_cross_entropy_of_labelled_images(self):
        """Of standardised features, those of the second pass by the statistics of the first."""
        (first, labels), (second, more) = batch(), batch()
        more[::3] = -1
        probe = taught([(first, labels), (second, more)])
        deviation = (first.var(0, correction=0) * 1 + 1e-4 * first.var(0, correction=0).mean()).sqrt()
        layer = nn.Linear(12, 4).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        scores = layer((second - first.mean(0)) / deviation)
        nn.functional.cross_entropy(scores, more, ignore_index=-1).backward()
        rate = Probe.RATE / 12
        torch.testing.assert_close(probe.fast[:, :12], -rate * layer.weight.grad)
        torch.testing.assert_close(probe.fast[:, 12], -rate * layer.bias.grad)
        torch.testing.assert_close(probe.weights, probe.fast)  # at first their plain mean

    def test_classes_that_a_line_separates(self):
        probe = taught([batch() for _ in range(100)])
        rows, labels = batch(1000)
        ideal = (torch.cdist(rows, CENTRES).argmin(1) == labels).sum()
        assert probe.correct(rows, labels) > 0.98 * ideal
        assert probe.correct(rows, torch.full_like(labels, -1)) == 0

    @pytest.mark.parametrize("scale", [0.01, 100.0])
    def test_the_scale_of_features_and_where_they_lie_change_nothing(self, scale):
        batches = [batch() for _ in range(30)]
        there = [(scale * (rows + 3), labels) for rows, labels in batches]
        rows, labels = batch(1000)
        ours, theirs = taught(batches), taught(there)
        assert abs(ours.correct(rows, labels) - theirs.correct(scale * (rows + 3), labels)) <= 10

    def test_dead_channels_and_an_overflow_leave_it_alive(self):
        batches = [batch() for _ in range(60)]
        for rows, _ in batches:
            rows[:, 3] = 0
        batches[5][0][2, 4] = math.inf
        probe = taught(batches)
        assert all(value.isfinite().all() for value in probe.buffers())
        rows, labels = batch(500)
        rows[:, 3] = 0
        assert probe.correct(rows, labels) > 400

    def test_a_pass_without_labels_moves_statistics_alone(self):
        probe = taught([batch(), (batch()[0], torch.full((32,), -1))])
        assert not probe.fast.any()
        assert probe.passes == 2

    def test_it_is_kept_whole(self):
        batches = [batch() for _ in range(6)]
        half, other = taught(batches[:3]), Probe(12, 4).double()
        other.load_state_dict(copy.deepcopy(half.state_dict()))
        assert_equal(taught(batches[3:], half).state_dict(), taught(batches[3:], other).state_dict())
        assert other.passes == 6

    def test_it_computes_in_float32_under_autocast(self):
        rows, labels = batch()
        ours, theirs = (taught([(rows.float(), labels)], Probe(12, 4)) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16):
            ours.learn(rows.bfloat16(), labels)
        theirs.learn(rows.bfloat16(), labels)
        assert_equal(ours.state_dict(), theirs.state_dict())
        assert ours.weights.dtype == torch.float32


def trained(run, folder, **changes):
    return run_in(folder, replace(run, **changes))


RUNS = {
    "lewel_m": replace(SHORT, accumulate=2),
    "lewel_b-eman": replace(SHORT, method=METHODS["lewel_b-eman"], precision="bf16"),
    "simsiam": replace(SHORT, method=MethodSettings(loss="simsiam", w_aligned=0.0), precision="fp16"),
}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_bitwise_the_same_with_it_and_without(name, tmp_path):
    with_it, without = (trained(RUNS[name], tmp_path / str(on), probe=on) for on in (True, False))
    assert_same(with_it, without)
    assert_equal(with_it.optimizer.state_dict()["state"][0], without.optimizer.state_dict()["state"][0])
    assert with_it.probe.passes == 4 * with_it.run.accumulate
    assert without.probe is None
    ours, theirs = ({r["kind"]: r for r in log.read(s.folder / "log.jsonl")} for s in (with_it, without))
    assert ours["epoch"].keys() - theirs["epoch"].keys() == {"probe"}
    assert ours["step"]["loss"] == theirs["step"]["loss"]
    assert 1 <= ours["epoch"]["rankme"] == theirs["epoch"]["rankme"] <= 16
    assert ours["baselines"]["rankme_untrained"] >= 1


@pytest.mark.usefixtures("narrow")
def test_a_resumed_run_ends_bitwise_the_same_log_included(tmp_path):
    run = replace(SHORT, knn_every=1)
    whole = run_in(tmp_path / "whole", run)
    run_in(tmp_path / "killed", run, epochs=1)
    (path,) = checkpoint.found(tmp_path / "killed" / "checkpoints")
    resumed = run_in(tmp_path / "killed", run, resume=path)
    assert_equal(whole.probe.state_dict(), resumed.probe.state_dict())
    assert_equal(whole.probe.state_dict(), folders.load(tmp_path / "whole").probe.state_dict())
    ours, theirs = (
        [(r["step"], r["probe"], r["rankme"]) for r in log.read(s.folder / "log.jsonl") if r["kind"] == "epoch"]
        for s in (whole, resumed)
    )
    assert ours == theirs
    assert len(ours) == 2


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kept", ["none", "of other classes"])
def test_a_checkpoint_without_one_that_fits_begins_it_anew_and_says_so(kept, tmp_path, capsys):
    prepared = prepare(SHORT, tmp_path)
    prepared.probe = None if kept == "none" else Probe(prepared.probe.channels, 3)
    prepared.steps_done = 2
    path = checkpoint.save(prepared)
    resumed = run_in(tmp_path, SHORT, resume=path)
    said = "has none" if kept == "none" else "is of other classes"
    assert (
        f"the linear probe begins anew, for that {'checkpoint' if kept == 'none' else 'of the checkpoint'} {said}"
        in (capsys.readouterr().out)
    )
    assert resumed.probe.passes == 2
    assert resumed.probe.weights.shape[0] == 10


class TestFeatures:
    """Those of the first view, from the pass that the objective takes anyway."""

    VIEWS = torch.randn(2, 8, 3, 32, 32, generator=DRAW)

    @pytest.mark.parametrize("name", ["lewel_m", "lewel_b-eman"])
    def test_are_the_encoders_means_without_a_graph(self, name):
        method, _ = session.build(replace(TINY, method=METHODS[name]), torch.device("cpu"))
        calls = []
        method.online.encoder.register_forward_hook(lambda module, args, out: calls.append((args[0], out)))
        step = method(*self.VIEWS, 0.9, features=True)
        images, out = calls[0]
        assert torch.equal(images, self.VIEWS[0])
        assert torch.equal(step.features, out.mean((2, 3)))
        assert not step.features.requires_grad
        assert method.online._seen is None
        assert method(*self.VIEWS, 0.9).features is None

    def test_of_an_objective_that_embeds_both_views_at_once_or_the_second_first(self):
        class Once(SimSiam):
            def forward(self, online, target, first, second, momentum, draw):
                z = online(torch.cat([first, second])).z
                return Terms({"global": z.square().mean()}, z.detach()[: len(first)])

        class Second(SimSiam):
            def forward(self, online, target, first, second, momentum, draw):
                z = [online(view).z for view in (second, first)]
                return Terms({"global": z[0].square().mean()}, z[1].detach())

        class Copy(SimSiam):
            def forward(self, online, target, first, second, momentum, draw):
                z = [online(view).z for view in (second, first.clone())]
                return Terms({"global": z[0].square().mean()}, z[1].detach())

        run = replace(TINY, method=MethodSettings(loss="simsiam", w_aligned=0.0))
        method = Method(run)
        method.online.encoder.eval()  # so that an image's features do not depend on those beside it
        expected = method.online.encoder(self.VIEWS[0]).mean((2, 3)).detach()
        for kind in (Once, Second, Copy):
            method.objective, method._joint = kind(run), None
            step = method(*self.VIEWS, None, features=True)
            torch.testing.assert_close(step.features, expected)
            assert step.shown is None if kind is Second else step.shown.all()

    def test_an_image_that_is_not_where_the_first_view_has_it_is_no_image_of_its_label(self):
        """Of a joint batch that an objective begins to shuffle: rows that differ are not shown."""

        class Shuffled(SimSiam):
            def forward(self, online, target, first, second, momentum, draw):
                joint = torch.cat([first, second])
                z = online(joint if draw[1] == 0 else joint[[0, 9, 2, 8, 7, 5, 6, 4, 1, *range(9, 16)]]).z
                return Terms({"global": z.square().mean()}, z.detach()[: len(first)])

        run = replace(TINY, method=MethodSettings(loss="simsiam", w_aligned=0.0))
        method = Method(run)
        method.objective = Shuffled(run)
        assert method(*self.VIEWS, None, 0, features=True).shown.all()
        shown = method(*self.VIEWS, None, 1, features=True).shown
        assert shown.tolist() == [True, False, True, False, False, True, True, False]
        fresh = Method(run)
        fresh.objective = Shuffled(run)
        assert fresh(*self.VIEWS, None, 1, features=True).features is None


class TestLabels:
    def test_images_beyond_the_labelled_ones_have_none(self):
        images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
        views = MemoryViews(images, TINY.data.augmentation, 0, torch.tensor([5, 7]))
        key = data.loader.BatchKey(0, torch.tensor([1, 4, 0]).numpy())
        assert views.labelled
        assert views[key].labels.tolist() == [7, -1, 5]
        assert replace(views, labels=None)[key].labels is None
        assert replace(views, labels=torch.empty(0, dtype=torch.int64))[key].labels.tolist() == [-1] * 3

    @pytest.mark.parametrize("storage", ["files", "memory"])
    def test_of_folders_are_those_of_the_test_images_classes(self, storage, tmp_path):
        """Labels of data.eval are of other classes than the training images, and a folder alone has none."""
        for name in ("train/a/1", "train/b/2", "test/a/3", "test/b/4"):
            path = tmp_path / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), "red").save(path)
        config = replace(TINY.data, name="folder", root=str(tmp_path), storage=storage)
        sets = data.build(config, 0)
        key = data.loader.BatchKey(0, torch.tensor([1, 0]).numpy())
        assert sets.probed
        assert sets.train[key].labels.tolist() == [1, 0]
        for changes in ({"eval": str(tmp_path)}, {"root": str(tmp_path / "train")}):
            sets = data.build(replace(config, **changes), 0)
            assert not sets.probed
            assert sets.train[key].labels is None

    @pytest.mark.parametrize(
        ("labels", "sentence"),
        [
            (None, "this one gave none"),
            (torch.zeros(2), r"gave torch.float32 of shape \(2,\)"),
            (torch.tensor([0, 10]), "0 to 9, or -1 for none, but a batch of the training set has 0 to 10"),
        ],
        ids=["none", "floats", "too many"],
    )
    def test_of_a_set_of_ones_own_that_are_none_are_a_sentence(self, labels, sentence, tmp_path):
        prepared = prepare(TINY, tmp_path)
        views = data.loader.Views(torch.zeros(2), torch.zeros(2), torch.arange(2), labels)
        with pytest.raises(DataError, match=sentence):
            prepared.labels_of(views)

    @pytest.mark.parametrize("changes", [{"knn_every": 0}, {"probe": False}], ids=["no kNN", "no probe"])
    def test_there_is_none_where_nothing_asks_for_it(self, changes, tmp_path):
        assert prepare(replace(TINY, **changes), tmp_path).probe is None

    def test_views_that_somebody_made_without_labels_have_none(self, tmp_path):
        sets = data.build(TINY.data, 0)
        assert sets.probed
        assert prepare(TINY, tmp_path, sets=replace(sets, train=replace(sets.train, labels=None))).probe is None


def test_processes_learn_as_one_from_the_images_of_all(monkeypatch):
    """The mean over labelled images is that of all, though one process has fewer of them."""
    batches = [batch(16) for _ in range(8)]
    for _, labels in batches:
        labels[:3] = -1
    alone = taught(batches)
    first, second = Probe(12, 4).double(), Probe(12, 4).double()
    for rows, labels in batches:
        halves = list(zip(rows.split(8), labels.split(8), strict=True))
        shares: list[Tensor] = []
        monkeypatch.setattr(distributed, "average", lambda x, shares=shares: shares.append(x) or x)
        for probe, half in zip((first, second), halves, strict=True):
            copy.deepcopy(probe).learn(*half)
        mean = (shares[0] + shares[1]) / 2
        monkeypatch.setattr(distributed, "average", lambda x, mean=mean: mean)
        for probe, half in zip((first, second), halves, strict=True):
            probe.learn(*half)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(first.state_dict()[key], value)
    assert_equal(first.state_dict(), second.state_dict())


def test_measured_is_knn_accuracy_and_more(tmp_path):
    prepared = prepare(SHORT, tmp_path)
    found = features.measured(prepared)
    assert found.knn == features.knn_accuracy(prepared)
    assert found.probe is None  # not a pass was taken
    assert presets.get("embedded/lewel_m").probe
