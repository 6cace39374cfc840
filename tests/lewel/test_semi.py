"""Fine-tuning on a share of the labels: a copy is trained as in the paper, resumed bitwise, and the encoder stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fault
import pytest
import torch
from PIL import Image
from tiny_runs import TINY
from torch import nn
from torch.nn import functional as F

import lewel
from lewel import data
from lewel.data.one_view import Labelled, augmentation, one_view
from lewel.errors import LewelError
from lewel.evaluation import offline, outcome, semi, state
from lewel.evaluation.semi import Settings
from lewel.evaluation.subject import Asked, Subject, find
from lewel.evaluation.tuning import Tuning
from lewel.run.preemption import Stopped

FEW = Settings(epochs=3)


@pytest.fixture
def asked(finished, tmp_path) -> Asked:
    """The tiny run: 48 training images, 16 test images, 10 classes."""
    return Asked(run=finished.folder, out=str(tmp_path / "out"), kind="semi")


@pytest.fixture
def subject(asked) -> Subject:
    return find(asked)


def loader_of(subject: Subject, settings: Settings) -> data.TrainLoader:
    planned = semi.plan(subject, settings)
    images = one_view(subject.sets.bank, augmentation(subject.run), settings.seed, planned.share.chosen)
    return data.TrainLoader(images, planned.batch)


def test_a_step_is_sgd_on_the_cross_entropy_by_two_rates_with_decay_of_everything(subject):
    settings = Settings(batch_size=10)
    with Tuning(subject, settings.seed) as tuning:
        before = {name: value.clone() for name, value in tuning.tuned.state_dict().items()}
        loss = tuning.epoch(loader_of(subject, settings), 0, (50.0, 20.0))
        after = {name: value.clone() for name, value in tuning.tuned.state_dict().items()}
        tuning.tuned.load_state_dict(before)
        tuning.tuned.train().zero_grad()
        batch = next(loader_of(subject, settings).epoch(0))
        maps = tuning.tuned.encoder(batch.images)
        by_hand = F.cross_entropy(tuning.tuned.fc(maps.mean((2, 3))), batch.labels)
        by_hand.backward()
        assert loss == pytest.approx(by_hand.item())
        for name, parameter in tuning.tuned.named_parameters():
            rate = 20.0 if name.startswith("fc.") else 50.0
            expected = before[name] - rate * (parameter.grad + 1e-4 * before[name])
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: name + m)


class Listed:
    """A loader that gives batches as they are listed."""

    def __init__(self, *batches: Labelled) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int):
        return iter(self.batches)


def test_momentum_is_carried_into_the_second_step(subject):
    """Of SGD: v = 0.9 v + g, w = w - rate v."""
    loader = Listed(*loader_of(subject, Settings(labels=10, batch_size=5)).epoch(0))
    assert len(loader) == 2
    with Tuning(subject, 0) as tuning:
        before = {name: value.clone() for name, value in tuning.tuned.state_dict().items()}
        tuning.epoch(loader, 0, (0.5, 0.5))
        after = {name: value.clone() for name, value in tuning.tuned.state_dict().items()}
        tuning.tuned.load_state_dict(before)
        velocity = {name: torch.zeros_like(p) for name, p in tuning.tuned.named_parameters()}
        for batch in loader.batches:
            tuning.tuned.train().zero_grad()
            F.cross_entropy(tuning.tuned(batch.images), batch.labels).backward()
            for name, parameter in tuning.tuned.named_parameters():
                velocity[name] = 0.9 * velocity[name] + parameter.grad + 1e-4 * parameter.data
                parameter.data -= 0.5 * velocity[name]
        for name, parameter in tuning.tuned.named_parameters():
            torch.testing.assert_close(after[name], parameter.data, rtol=1e-4, atol=1e-5)


def test_an_image_without_a_label_has_no_weight_and_a_batch_of_them_is_passed_over(subject):
    batch = next(loader_of(subject, Settings(batch_size=10)).epoch(0))
    some = batch._replace(labels=torch.where(torch.arange(10) % 3 == 0, -1, batch.labels))
    none = batch._replace(labels=torch.full((10,), -1))
    with Tuning(subject, 0) as tuning:
        before = {name: value.clone() for name, value in tuning.tuned.state_dict().items()}
        loss = tuning.epoch(Listed(none, some), 0, (0.5, 0.5))
        after = {name: value.clone() for name, value in tuning.tuned.state_dict().items()}
        tuning.tuned.load_state_dict(before)
        named = some.labels >= 0
        by_hand = F.cross_entropy(tuning.tuned.train()(batch.images)[named], batch.labels[named])
        assert loss == pytest.approx(by_hand.item())
        weight = tuning.tuned.fc.weight
        (gradient,) = torch.autograd.grad(by_hand, weight)
        expected = before["fc.weight"] - 0.5 * (gradient + 1e-4 * before["fc.weight"])
        torch.testing.assert_close(after["fc.weight"], expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(LewelError, match="none of the images to fine-tune on could be read"):
            tuning.epoch(Listed(none), 0, (0.5, 0.5))


def test_images_are_cropped_and_flipped_and_nothing_else(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(semi, "one_view", lambda images, how, *given: seen.append(how) or one_view(images, how, *given))
    semi.evaluate(subject, replace(FEW, epochs=1))
    assert seen == [augmentation(subject.run)]


def test_bn_adapts_and_the_subject_s_encoder_stays(subject, monkeypatch):
    digest, before, saved = subject.digest, subject.encoder.bn1.running_mean.clone(), []
    monkeypatch.setattr(state, "save", lambda path, values: saved.append(values["tuning"]["weights"]))
    semi.evaluate(subject, replace(FEW, lr=1.0))
    assert subject.digest == digest
    assert not subject.encoder.training
    assert (saved[0]["encoder.bn1.running_mean"] - before).abs().max() > 1e-3
    assert (saved[-1]["encoder.layer1.0.conv1.weight"] - subject.encoder.layer1[0].conv1.weight).abs().max() > 1e-5


def test_accuracies_are_of_all_test_images_in_eval_mode(subject):
    with Tuning(subject, 0) as tuning:
        tuning.epoch(loader_of(subject, FEW), 0, (0.1, 0.5))
        top1, top5 = tuning.accuracies()
        images, labels = (torch.cat(parts) for parts in zip(*data.eval_batches(subject.sets.test, 5), strict=True))
        with torch.no_grad():
            order = tuning.tuned.eval()(images).argsort(1, descending=True)
        assert top1 == 100 * float((order[:, 0] == labels).float().mean())
        assert top5 == 100 * float((order[:, :5] == labels[:, None]).any(1).float().mean())
        assert 0 < top5 < 100


def test_the_caller_s_random_numbers_stay(subject):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    semi.evaluate(subject, replace(FEW, epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_that_was_stopped_goes_on_bitwise(subject, precision, monkeypatch):
    subject.run = replace(subject.run, precision=precision)
    subject.encoder = nn.Sequential(subject.encoder, nn.Dropout2d())  # which draws at every step
    settings, save, saved = replace(FEW, lr=0.5), state.save, []

    def keep(path: Path, values: dict) -> None:
        saved.append({name: value.clone() for name, value in values["tuning"]["weights"].items()})
        save(path, values)

    monkeypatch.setattr(state, "save", keep)
    whole = semi.evaluate(subject, settings)
    semi.done(subject, settings)
    expected, killed = saved[-1], len(saved) + 2
    accuracies = Tuning.accuracies

    def stopped(self):
        if len(saved) == killed:
            raise KeyboardInterrupt
        return accuracies(self)

    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "accuracies", stopped)
        with pytest.raises(Stopped, match="epoch 2 of 3 is saved, and --resume auto goes on from there"):
            semi.evaluate(subject, settings)
    with pytest.raises(LewelError, match="stopped after epoch 2; continue it by --resume auto, or remove"):
        semi.evaluate(subject, settings)
    with pytest.raises(LewelError, match=r"other settings \(epochs: 3 -> 4; drops: \[2, 3\] -> \[3, 4\]\)"):
        semi.evaluate(subject, replace(settings, resume="auto", epochs=4))
    again = semi.evaluate(subject, replace(settings, resume="auto"))
    assert again["by_epoch"] == whole["by_epoch"]
    assert all(torch.equal(value, expected[name]) for name, value in saved[-1].items())


def test_a_loss_that_is_not_finite_is_a_sentence(subject):
    with pytest.raises(LewelError, match=r"the loss became (nan|inf) in epoch \d of fine-tuning; try a lower --fc-lr"):
        semi.evaluate(subject, replace(FEW, lr=1e30, fc_lr=1e30))


def test_a_result_says_last_and_best_and_is_written(asked, capsys):
    result = offline.run(asked, FEW)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 % of the labels: 10 of 48 training images")
    assert len(lines) == 2
    by_epoch = result.values["by_epoch"]
    best = max(values["top1"] for values in by_epoch)
    last = by_epoch[-1]
    assert (result.values["top1"], result.values["best"]["top1"]) == (last["top1"], best)
    assert f"top-1 {last['top1']:.2f} %, top-5 {last['top5']:.2f} % after the last of 3 epochs, best {best:.2f} %" in (
        result.said
    )
    assert "(chosen on the test images)" in result.said
    content = json.loads(result.path.read_text())
    assert (content["kind"], content["accuracy"], content["checkpoint"]) == ("semi-1", last["top1"], "step-00000009")
    assert content["settings"]["chosen"] == 10
    assert content["published"] == "no published value for this recipe"
    assert [path.name for path in result.path.parent.iterdir()] == ["semi-1-step-00000009.json"]
    assert outcome.newest(Path(asked.out), "semi")[0]["values"]["by_epoch"] == by_epoch


class Coloured:
    """Twenty images from Python: their colour is their class."""

    classes = ("dark", "light")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int):
        return Image.new("RGB", (40, 40), (60 + 100 * (index % 2) + index,) * 3), index % 2


class Mine(nn.Module):
    """An encoder of one's own, with a classifier that makes no map, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, images):
        return self.bn(self.conv(images)).relu()


def test_data_and_encoder_from_python(tmp_path, monkeypatch):
    """What makes no feature stays untrained; what somebody froze for pre-training trains."""
    torch.manual_seed(0)
    module, pair = Mine(), (Coloured(), Coloured())
    recipe = replace(TINY, data=replace(TINY.data, batch_size=4), epochs=1, knn_every=0)
    recipe = replace(recipe, method=replace(recipe.method, queue=4))
    lewel.train(config=recipe, data=pair, encoder=module, out=tmp_path / "run")
    before, saved, save = module.state_dict()["fc.weight"].clone(), [], state.save
    monkeypatch.setattr(state, "save", lambda path, values: saved.append(values) or save(path, values))
    values = lewel.eval("semi", tmp_path / "run", data=pair, encoder=module, labels=10, epochs=8, lr=10.0, fc_lr=100.0)
    assert values["top1"] == 100
    assert torch.equal(saved[-1]["tuning"]["weights"]["encoder.model.fc.weight"], before)
    assert len(values["by_epoch"]) == 8
    with Tuning(find(Asked(run=tmp_path / "run", data=pair, encoder=module, kind="semi")), 0) as tuning:
        fixed = [name for name, parameter in tuning.tuned.named_parameters() if not parameter.requires_grad]
    assert fixed == ["encoder.model.fc.weight", "encoder.model.fc.bias"]


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_a_dry_run_reads_labels_of_files_and_writes_nothing(storage, tmp_path, monkeypatch):
    """Of images that are to lie in memory too, which are not there yet."""
    fault.labelled(tmp_path / "images", train=20)
    config = replace(fault.OF_FILES.data, root=str(tmp_path / "images"), storage=storage)
    weights = tmp_path / "weights.pth"
    torch.save(lewel.methods.encoders.build(TINY.encoder).state_dict(), weights)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(lewel.recipe.plain.to_yaml(replace(fault.OF_FILES, data=config)))
    asked = Asked(weights=str(weights), config=str(recipe), out=str(tmp_path / "out"), kind="semi")
    said = offline.plan(asked, Settings(labels=10))
    assert "10 % of the labels: 4 of 40 training images, 2 of every class, drawn by seed 0" in said
    assert not (tmp_path / "out").exists()
    done = offline.run(asked, Settings(labels=10, epochs=1))
    assert "top5" not in {**done.values, **done.values["best"]}  # there are two classes
    assert " % after the last of 1 epoch, best " in done.said
