"""What is opened for an evaluation: weights of runs, files and other libraries, all of them or an error."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace

import fault
import pytest
import torch
import torchvision
from saved_runs import saved
from test_official import official
from tiny_runs import METHODS, TINY
from torch import nn

import lewel
from lewel import data, distributed
from lewel.data.in_memory import MemoryImages
from lewel.errors import LewelError
from lewel.evaluation import offline, outcome, subject
from lewel.evaluation.subject import Asked, Subject
from lewel.methods import encoders
from lewel.methods.method import Method
from lewel.recipe import plain
from lewel.recipe.schema import EncoderSettings
from lewel.results.export import export
from lewel.run.session import prepare

RESNET = EncoderSettings("resnet18", stem="imagenet")
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def gap(encoder: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(images).mean((2, 3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a ResNet-18 and the method whose weights it has."""
    folder = tmp_path_factory.mktemp("subjects") / "run"
    return folder, saved(folder, RESNET)


def test_a_run_is_its_newest_checkpoint_frozen(finished):
    found = subject.find(Asked(run=finished.folder))
    assert (found.name, found.epoch, found.step, found.folder) == ("step-00000009", 3, 9, finished.folder)
    assert not found.encoder.training
    assert not any(parameter.requires_grad for parameter in found.encoder.parameters())
    images, _ = finished.sets.test[data.spaced(finished.sets.test, 16)]
    encoder = finished.method.online.encoder
    with torch.no_grad():
        expected = encoder.eval()(finished.to_device(images)).mean((2, 3))
    encoder.train()
    assert torch.equal(found.features(images), expected)


@pytest.mark.parametrize("library", ["torchvision", "timm", "detectron2", "mmseg", "safetensors"])
def test_an_export_makes_bitwise_the_features_of_its_run(library, run, tmp_path):
    folder, method = run
    export(folder, library, tmp_path / f"w{'.safetensors' if library == 'safetensors' else '.pth'}"
           if library != "detectron2" else tmp_path / "w.pkl")  # fmt: skip
    (file,) = tmp_path.iterdir()
    found = subject.find(Asked(run=folder, weights=str(file)))
    assert (found.name, found.step, found.folder) == ("w", None, folder)
    assert torch.equal(found.features(IMAGES), gap(method.online.encoder))


def test_torchvision_names_and_those_of_the_authors_make_bitwise_their_features(run, tmp_path):
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    found = subject.find(Asked(run=run[0], weights=str(tmp_path / "theirs.pth")))
    body = nn.Sequential(*list(model.children())[:-2])
    assert torch.equal(found.features(IMAGES), gap(body))
    method = Method(replace(TINY, encoder=RESNET, method=METHODS["lewel_b-eman"]))
    torch.save({"state_dict": official(method)}, tmp_path / "authors.pth")
    found = subject.find(Asked(run=run[0], weights=f"official:{tmp_path / 'authors.pth'}"))
    assert "the authors' LEWEL_B" in found.said
    assert torch.equal(found.features(IMAGES), gap(method.online.encoder))


def test_a_checkpoint_has_its_own_recipe_and_its_run_gets_the_result(run, tmp_path):
    folder, method = run
    path = next((folder / "checkpoints").iterdir())
    found = subject.find(Asked(weights=str(path)))
    assert (found.folder, found.name, found.step) == (folder, path.stem, 8)
    assert torch.equal(found.features(IMAGES), gap(method.online.encoder))
    shutil.copy(path, tmp_path / "moved.pt")
    assert subject.find(Asked(weights=str(tmp_path / "moved.pt"))).folder.as_posix() == "runs/moved"
    out = subject.find(Asked(weights=str(path), out=str(tmp_path / "out"))).folder
    assert out == tmp_path / "out"


def test_the_folder_of_a_run_as_weights_is_its_newest_checkpoint(run, tmp_path):
    found = subject.find(Asked(run=run[0], weights=str(run[0])))
    assert (found.name, found.step) == ("step-00000008", None)
    (tmp_path / "other.yaml").write_text(plain.to_yaml(replace(TINY, encoder=replace(RESNET, last_stride=1))))
    with pytest.raises(LewelError, match=r"step-00000008\.pt has the weights of another encoder"):
        subject.find(Asked(weights=str(run[0]), config=str(tmp_path / "other.yaml")))


def test_what_is_of_the_run_itself_is_told_from_what_is_not(run, finished, tmp_path):
    fault.labelled(tmp_path / "set", 4, 2)
    checkpoint, at = next((run[0] / "checkpoints").iterdir()), str(tmp_path / "set")
    assert subject.find(Asked(run=run[0])).own
    assert subject.find(Asked(weights=str(checkpoint))).own
    assert not subject.find(Asked(run=run[0], weights=str(checkpoint))).own
    assert not subject.find(Asked(run=run[0], data_eval=at, data_root=(at,))).own
    assert not subject.find(Asked(run=run[0], out=str(finished.folder))).own


def test_a_recipe_goes_with_weights_that_have_none(tmp_path):
    (tmp_path / "tiny.yaml").write_text(plain.to_yaml(TINY))
    encoder = encoders.build(TINY.encoder)
    torch.save(encoder.state_dict(), tmp_path / "mine.pth")
    asked = Asked(weights=str(tmp_path / "mine.pth"), config=str(tmp_path / "tiny.yaml"))
    found = subject.find(asked)
    assert (found.folder.as_posix(), found.epoch) == ("runs/mine", None)
    images = IMAGES[..., :32, :32]
    layout = {"memory_format": torch.channels_last}
    assert torch.equal(found.features(images), gap(encoder.to(**layout), images.to(**layout)))


def test_another_last_stride_is_another_encoder_though_its_weights_have_the_same_shapes(run, tmp_path):
    other = replace(TINY, encoder=replace(RESNET, last_stride=1))
    (tmp_path / "other.yaml").write_text(plain.to_yaml(other))
    path = next((run[0] / "checkpoints").iterdir())
    with pytest.raises(LewelError, match=r"weights of another encoder \(its encoder.last_stride is 2, this run's 1\)"):
        subject.find(Asked(weights=str(path), config=str(tmp_path / "other.yaml")))


def test_training_settings_refuse_nothing(tmp_path, finished):
    """As many images as a batch has are needed for training alone."""
    shutil.copytree(finished.folder, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000009.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["data"]["embedded_train"] = 10
    torch.save(state, path)
    assert len(subject.find(Asked(run=tmp_path / "run")).sets.bank) == 10


def test_the_digest_is_of_every_tensor(finished):
    found = subject.find(Asked(run=finished.folder))
    first = found.digest
    assert subject.of_session(finished).digest == first
    finished.method.train()
    for tensor in (found.encoder.conv1.weight, found.encoder.bn1.running_var, found.encoder.bn1.num_batches_tracked):
        kept = tensor.clone()
        tensor[(0,) * tensor.ndim] += 1
        assert found.digest != first
        tensor.copy_(kept)
    assert found.digest == first


def test_opening_draws_nothing_and_leaves_a_module_from_python_as_it_was(finished):
    state = torch.get_rng_state()
    subject.find(Asked(run=finished.folder))
    assert torch.equal(torch.get_rng_state(), state)
    module = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4))
    with offline._as_it_was(module):
        module.eval().requires_grad_(False)
    assert module.training
    assert module[0].weight.requires_grad


def with_labels(train: list[int], test: list[int]) -> Subject:
    images, world = torch.zeros(max(len(train), len(test)), 3, 32, 32, dtype=torch.uint8), distributed.join()
    bank, tests = (MemoryImages(images[: len(x)], torch.tensor(x)) for x in (train, test))
    sets = data.Datasets(None, bank, tests, 4)  # type: ignore[arg-type]
    return Subject(TINY, None, "x", nn.Identity(), sets, world, None, None, "")  # type: ignore[arg-type]


def test_classes_of_one_split_alone():
    assert with_labels([0, 1, 2, 3], [3, 2, 1, 0]).check_classes() == ""
    assert "no test images of classes 1, 3" in with_labels([0, 1, 2, 3], [0, 2]).check_classes()
    with pytest.raises(LewelError, match="test images of class 3 but no training images"):
        with_labels([0, 1, 2], [0, 3]).check_classes()


SETTINGS = {"k": [5], "rate": 0.1}


class TestOutcome:
    @pytest.fixture
    def found(self, finished, tmp_path):
        return subject.find(Asked(run=finished.folder, out=str(tmp_path)))

    def test_is_read_as_it_was_written(self, found, tmp_path):
        path = outcome.write(found, "knn", SETTINGS, {"accuracy": 12.5, "knn": {"5": 12.5}}, "published: 72.8")
        assert path == tmp_path / "eval" / "knn-step-00000009.json"
        (result,) = outcome.newest(tmp_path)
        assert (result["kind"], result["checkpoint"], result["epoch"], result["step"]) == ("knn", found.name, 3, 9)
        assert (result["accuracy"], result["values"], result["settings"]) == (12.5, {"knn": {"5": 12.5}}, SETTINGS)
        assert (result["weights"], result["published"]) == (found.digest, "published: 72.8")
        assert result["images"] == {"train": 48, "test": 16, "classes": 10}
        assert plain.from_plain(result["recipe"], source="") == found.run

    def test_of_the_same_is_replaced_and_of_other_settings_gets_a_number(self, found, tmp_path):
        names = [
            outcome.write(found, "knn", settings, {"accuracy": accuracy}).name
            for settings, accuracy in ((SETTINGS, 1), ({"k": [9]}, 2), (SETTINGS, 3))
        ]
        assert names == ["knn-step-00000009.json", "knn-step-00000009-2.json", "knn-step-00000009.json"]
        assert [result["accuracy"] for result in outcome.newest(tmp_path, "knn")] == [2, 3]
        assert outcome.newest(tmp_path, "linear") == []

    def test_of_moved_images_is_replaced_and_of_others_is_not(self, found, tmp_path):
        fault.labelled(tmp_path / "set", 4, 2)

        def written(root: str) -> str:
            run = replace(TINY, data=replace(TINY.data, name="folder", root=str(tmp_path / root)))
            moved = replace(found, run=run, sets=data.build(run.data, 0), kept={})
            return outcome.write(moved, "knn", SETTINGS, {"accuracy": 1}).name

        assert written("set") == "knn-step-00000009.json"
        (tmp_path / "set").rename(tmp_path / "moved")
        assert written("moved") == "knn-step-00000009.json"
        fault.picture(tmp_path / "moved" / "test" / "ant" / "000.png", 99)
        assert written("moved") == "knn-step-00000009-2.json"

    def test_two_that_are_written_at_once_are_both_there(self, found, tmp_path, monkeypatch):
        """The name that one has found free is taken by another before it is written."""
        claim, calls = outcome._claim, []

        def slow(*arguments):
            calls.append(arguments)
            if len(calls) == 1:
                outcome.write(found, "knn", {"k": [9]}, {"accuracy": 2})
            claim(*arguments)

        monkeypatch.setattr(outcome, "_claim", slow)
        assert outcome.write(found, "knn", SETTINGS, {"accuracy": 1}).name == "knn-step-00000009-2.json"
        assert sorted(result["accuracy"] for result in outcome.newest(tmp_path)) == [1, 2]
        assert len(list((tmp_path / "eval").iterdir())) == 2

    def test_without_links_the_name_is_taken_all_the_same(self, found, tmp_path, monkeypatch):
        def refused(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
        for accuracy, k in ((1, 5), (2, 6)):
            outcome.write(found, "knn", {"k": k}, {"accuracy": accuracy})
        assert [result["accuracy"] for result in outcome.newest(tmp_path)] == [1, 2]

    @pytest.mark.parametrize(
        ("number", "says"),
        [(errno.ENOSPC, "No space left on device; make room, or choose"), (errno.EROFS, "file system; choose")],
        ids=["full", "read-only"],
    )
    def test_what_cannot_be_written_is_known_before_anything_is_computed(
        self, number, says, finished, tmp_path, monkeypatch
    ):
        def refused(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(outcome.Path, "touch", refused)
        monkeypatch.setattr(Subject, "features", None)
        with pytest.raises(LewelError, match=rf"results cannot be written to .*eval: .*{says} .* --out FOLDER"):
            lewel.eval("knn", finished.folder, out=tmp_path)

    def test_a_file_that_is_no_result_stays(self, found, tmp_path):
        (tmp_path / "eval").mkdir()
        (tmp_path / "eval" / "knn-step-00000009.json").write_text("mine")
        assert outcome.write(found, "knn", {}, {"accuracy": 1}).name == "knn-step-00000009-2.json"
        assert (tmp_path / "eval" / "knn-step-00000009.json").read_text() == "mine"


def test_a_session_is_evaluated_as_it_is(tmp_path):
    session = prepare(TINY, tmp_path)
    found = subject.of_session(session)
    assert found.encoder is session.method.online.encoder
    assert not found.encoder.training
    assert found.name == "step-00000000"
