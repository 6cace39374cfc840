"""Images on the training device: the same views as from memory, and never a question to the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lewel.data import TrainLoader, batched, build, eval_batches, room
from lewel.data.datasets import storage_for
from lewel.data.in_memory import MemoryImages, MemoryViews
from lewel.data.loader import BatchKey
from lewel.errors import LewelError
from lewel.recipe.checks import check as check_recipe
from lewel.recipe.schema import Augmentation, Data, Train

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
VIEWS = Augmentation(blur=(1.0, 0.5), solarize=(0.5, 0.5))
EMBEDDED = Data(embedded_train=60, embedded_test=20, image_size=32, batch_size=20, augmentation=VIEWS)


class Copies(TorchDispatchMode):
    """Counts the copies between the CPU and the device "meta", which has no values and refuses every question."""

    def __init__(self) -> None:
        super().__init__()
        self.there = self.back = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and function.overloadpacket in (
            torch.ops.aten._to_copy,
            torch.ops.aten.copy_,
        ):
            sources = {argument.device.type for argument in arguments if isinstance(argument, torch.Tensor)}
            self.there += result.is_meta and "cpu" in sources
            self.back += not result.is_meta and "meta" in sources
        return result


def test_device_is_memory_bit_for_bit():
    in_memory, on_device = (build(replace(EMBEDDED, storage=held), 3, CPU) for held in ("memory", "device"))
    shared, alone = TrainLoader(in_memory.train, 20, workers=2), TrainLoader(on_device.train, 20)
    for ours, theirs in zip(alone.epoch(1), shared.epoch(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for ours, theirs in zip(eval_batches(on_device.bank, 16), eval_batches(in_memory.bank, 16), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_batch_of_views_is_three_uploads_and_no_question():
    """Which images, and the draws of either view."""
    images = torch.empty(60, 3, 32, 32, dtype=torch.uint8, device=META)
    with Copies() as copies:
        views = MemoryViews(images, VIEWS, seed=0)[BatchKey(0, np.arange(40))]
    assert views.first.is_meta
    assert views.second.shape == (40, 3, 32, 32)
    assert views.indices.device == CPU
    assert (copies.there, copies.back) == (3, 0)


def test_a_batch_to_evaluate_is_one_upload_and_its_labels_stay():
    images = torch.empty(60, 3, 32, 32, dtype=torch.uint8, device=META)
    with Copies() as copies:
        shown, labels = MemoryImages(images, torch.arange(60))[np.array([5, 3])]
    assert shown.is_meta
    assert labels.tolist() == [5, 3]
    assert (copies.there, copies.back) == (1, 0)


def test_every_operation_is_among_those_views():
    """Or the counts above would say little."""
    draws = batched.draw(VIEWS, 32, 1, 0, 0, np.arange(40))
    assert all((draws.order == position).any(axis=0).all() for position in range(4))
    assert draws.gray.any()
    assert (draws.sigma > 0).any()
    assert draws.solarize.any()


def test_build_puts_all_three_sets_on_the_device():
    sets = build(replace(EMBEDDED, storage="device"), 0, META)
    assert sets.train.device == sets.bank.images.device == sets.test.images.device == META
    assert sets.bank.labels.device == sets.test.labels.device == CPU
    assert build(replace(EMBEDDED, storage="memory"), 0, META).train.device == CPU


@pytest.mark.parametrize(
    ("config", "device", "storage"),
    [
        pytest.param(Data(), CUDA, "device", id="small-on-gpu"),
        pytest.param(Data(name="cifar10"), CUDA, "device", id="by-name-on-gpu"),
        pytest.param(Data(name="stl10", workers=4), CUDA, "memory", id="workers"),
        pytest.param(Data(name="cifar100"), CPU, "memory", id="on-cpu"),
        pytest.param(Data(name="folder"), CUDA, "files", id="folder"),
        pytest.param(Data(name="imagenette"), CPU, "files", id="imagenette"),
        pytest.param(Data(name="folder", storage="device"), CUDA, "device", id="as-told"),
    ],
)
def test_automatic_storage(config, device, storage):
    assert storage_for(config, device) == storage


@pytest.mark.parametrize(
    ("storage", "device", "pinned"),
    [("memory", CUDA, True), ("memory", CPU, False), ("device", CUDA, False)],
    ids=["for-a-gpu", "for-the-cpu", "already-there"],
)
def test_only_what_must_travel_is_pinned(storage, device, pinned):
    sets = build(replace(EMBEDDED, storage=storage), 0, META)
    assert TrainLoader(sets.train, 20, device=device)._loader.pin_memory == pinned


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        pytest.param(Data(storage="device", workers=2), r"needs --data\.workers 0, got 2", id="workers"),
        pytest.param(Data(name="cifar10", storage="files"), "cifar10 images are in no files", id="files"),
        pytest.param(Data(name="stl10", classes="x.txt"), "classes x.txt chooses .* stl10 is used as a", id="classes"),
        pytest.param(Data(train_list="x.txt"), "train_list x.txt chooses .* embedded is used as a", id="train-list"),
        pytest.param(
            Data(name="folder", download=True), "fetches sets like cifar10, and folder is none", id="download"
        ),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(config, sentence):
    with pytest.raises(LewelError, match=sentence):
        check_recipe(Train(data=config))


@pytest.mark.parametrize(
    "config",
    [
        Data(name="cifar10", download=True, root="there"),
        Data(name="imagenette", storage="files", workers=2),
        Data(name="folder", classes="a", train_list="b"),
        Data(name="folder", storage="device"),
    ],
    ids=lambda config: config.name,
)
def test_settings_that_belong_together_pass(config):
    check_recipe(Train(data=config))


class TestRoom:
    """How much memory is free, as the system and its control groups tell."""

    @pytest.fixture(autouse=True)
    def system(self, tmp_path, monkeypatch):
        (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   4000 kB\n")
        for name, path in (("MEMINFO", "meminfo"), ("CGROUPS", "groups"), ("OWN", "own")):
            monkeypatch.setattr(room, name, tmp_path / path)
        return tmp_path

    @pytest.mark.parametrize(
        ("own", "group", "files", "free"),
        [
            pytest.param("0::/a/b\n", "a/b", {"max": "max", "current": "500"}, 4_096_000, id="no-limit"),
            pytest.param("0::/a/b\n", "a", {"max": "9000", "current": "7000"}, 2000, id="of-a-parent"),
            pytest.param("0::/\n", "", {"max": "9000", "current": "9100"}, 0, id="full"),
            pytest.param("0::/\n", "", {"max": "9", "current": "9", "stat": "anon 3\nactive_file 5\n"}, 5, id="cache"),
            pytest.param(
                "4:cpu,memory:/x\n3:cpuset:/\n",
                "memory",
                {"limit_in_bytes": "900", "usage_in_bytes": "700", "stat": "active_file 5\ntotal_inactive_file 30\n"},
                230,
                id="version-1",
            ),
        ],
    )
    def test_is_the_least_that_anything_leaves(self, own, group, files, free, system):
        (system / "own").write_text(own)
        (system / "groups" / group).mkdir(parents=True)
        for name, text in files.items():
            (system / "groups" / group / f"memory.{name}").write_text(text)
        assert room.free(CPU) == free

    def test_is_shared_by_the_processes_of_a_machine(self, monkeypatch):
        room.check(16, 256, CPU)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(LewelError, match=r"16 images of 256 .* in each of 2 processes, 0\.0 GiB are free"):
            room.check(16, 256, CPU)

    def test_that_nobody_tells_is_enough(self, system):
        (system / "meminfo").unlink()
        room.check(10**9, 1000, CPU)
