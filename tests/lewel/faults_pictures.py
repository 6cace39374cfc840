"""Pictures that would be shown wrong, files that cannot be read, and how often either is said."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fault import OF_FILES, TRAIN, Ended, Fault, labelled, picture, pictures
from PIL import Image

from lewel import api
from lewel.run import checkpoint
from lewel.watching import log

FILES = f"{TRAIN} --data.root set --out run"
RESUME = f"{FILES} --resume auto --epochs 2 --optim.schedule constant --method.momentum-schedule constant"


def ramps(root: Path, write: Callable[[np.ndarray, Path], None], train: int = 8) -> None:
    """Two classes that only the picture tells apart: values from 0 to 1 that rise to the right, or to the left."""
    for split, count in (("train", train), ("test", 2)):
        for name, ends in (("ant", (0, 1)), ("bee", (1, 0))):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                ramp = np.linspace(*ends, 40)[None].repeat(32, 0)
                write(0.1 + 0.8 * ramp + 0.01 * i, root / split / name / f"{i}")


def sixteen_bits(root: Path) -> None:
    def write(values: np.ndarray, path: Path) -> None:
        Image.fromarray((50_000 * values + 4_000).astype(np.uint16)).save(path.with_suffix(".png"))

    ramps(root, write)


def floats(root: Path) -> None:
    def write(values: np.ndarray, path: Path) -> None:
        values[:2, :2] = np.nan
        Image.fromarray(values.astype(np.float32)).save(path.with_suffix(".tiff"))

    ramps(root, write)


def lying_on_their_heads(root: Path) -> None:
    """As a camera that was held upside down wrote them: only EXIF tells the classes of the training images apart."""

    def write(values: np.ndarray, path: Path) -> None:
        exif = Image.Exif()
        if path.match("train/bee/*"):
            values, exif[0x0112] = values[::-1, ::-1], 3
        Image.fromarray((255 * values).astype(np.uint8)).save(path.with_suffix(".png"), exif=exif)

    ramps(root, write)


def told_apart(ended: Ended) -> None:
    (baselines,) = (record for record in log.read(ended.folder / "run" / "log.jsonl") if record["kind"] == "baselines")
    assert baselines["knn_pixels"] == 100


def broken(root: Path, count: int, train: int = 8) -> None:
    """The first count training images are empty files."""
    labelled(root, train=train)
    for path in sorted((root / "train").glob("*/*.png"))[:count]:
        path.write_bytes(b"")


def oddly_named(folder: Path) -> None:
    labelled(folder / "set")
    (folder / "set" / "train" / "ant" / "a\n\x1b[31mb.png").touch()


def counted(number: int) -> Callable[[Ended], None]:
    def check(ended: Ended) -> None:
        steps = [record for record in log.read(ended.folder / "run" / "log.jsonl") if record["kind"] == "step"]
        assert [record["replaced"] for record in steps] == [number] * len(steps) != []

    return check


def named(number: int) -> Callable[[Ended], None]:
    def check(ended: Ended) -> None:
        assert ended.printed.count("cannot read set/train") == number
        counted(20)(ended)

    return check


def trained(folder: Path, change: Callable[[Path], object]) -> None:
    """A run of one epoch, after which change(folder / "set") changes its images."""
    labelled(folder / "set")
    rates = {"optim.schedule": "constant", "method.momentum_schedule": "constant"}
    api.train(config=folder / "tiny.yaml", data=folder / "set", out=folder / "run", **rates)
    change(folder / "set")


def of_before(folder: Path, beside: int = 0) -> None:
    """A run as an earlier version left it, and images beside its class folders, which that did not count."""
    trained(folder, lambda root: pictures(root / "train", beside))
    (path,) = checkpoint.found(folder / "run" / "checkpoints")
    state = torch.load(path, weights_only=True)
    del state["known_by"]
    torch.save(state, path)


def limited(folder: Path) -> None:
    """A run that reads no image of more than 100,000 pixels, and one beside it."""
    labelled(folder / "set")
    settings = {"data.max_pixels": 100_000}
    api.train(config=folder / "tiny.yaml", data=folder / "set", out=folder / "run", **settings)
    picture(folder / "x.png", size=(400, 300))


def moved(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def mended(folder: Path) -> None:
    """A run with an image that could not be read, and can be since."""
    root = folder / "set"
    labelled(root)
    (root / "train" / "ant" / "003.png").write_bytes((root / "train" / "ant" / "003.png").read_bytes()[:-30])
    rates = {"optim.schedule": "constant", "method.momentum_schedule": "constant"}
    api.train(config=folder / "tiny.yaml", data=root, out=folder / "run", **rates)
    picture(root / "train" / "ant" / "003.png", 21)


def four_classes(folder: Path) -> None:
    labelled(folder / "set", train=16)
    for split in ("train", "test"):
        for name, copied in (("cat", "ant"), ("dog", "bee")):
            shutil.copytree(folder / "set" / split / copied, folder / "set" / split / name)


def remove_three(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Takes three of four class folders away once the run has taken steps."""
    file = folder / "run" / "log.jsonl"
    while not file.exists() or '"kind": "step"' not in file.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    for name in ("ant", "bee", "cat"):
        (folder / "set" / "train" / name).rename(folder / name)


def goes_on(ended: Ended) -> None:
    """The last step is saved, and --resume auto takes it up once the images are back."""
    newest = checkpoint.found(ended.folder / "run" / "checkpoints")[-1]
    assert str(newest.relative_to(ended.folder)) in ended.printed
    steps = [r["step"] for r in log.read(ended.folder / "run" / "log.jsonl") if r["kind"] == "step"]
    assert checkpoint.read(newest)["step"] in (steps[-1], steps[-1] + 1)


def large(folder: Path) -> None:
    labelled(folder / "set")
    picture(folder / "set" / "train" / "ant" / "000.png", size=(400, 300))


def told_as_it_is_read(ended: Ended) -> None:
    """The recipe comes first, then how far reading has come, then the baselines."""
    parts = ("16 training images", "reading into memory: 10 of 18 images", "before training: kNN")
    places = [ended.printed.index(part) for part in parts]
    assert places == sorted(places), ended.printed


def lists_moved(folder: Path, *, shorter: bool = False) -> None:
    """A run on listed images of listed classes, and its lists under other names."""
    labelled(folder / "set")
    lines = [f"{name}/{i:03}.png" for name in ("ant", "bee") for i in range(8)]
    for name, listed in (("l", lines), ("m", lines[shorter:]), ("c", ("ant", "bee")), ("d", ("bee", "ant"))):
        (folder / f"{name}.txt").write_text("\n".join(listed))
    data = replace(OF_FILES.data, train_list=str(folder / "l.txt"), classes=str(folder / "c.txt"))
    rates = {"optim.schedule": "constant", "method.momentum_schedule": "constant"}
    api.train(config=replace(OF_FILES, data=data), data=folder / "set", out=folder / "run", **rates)
    for name in "lc":
        (folder / f"{name}.txt").unlink()


TOO_MANY = ("of the 16 images in set/train could not be read", "--data.max-unreadable", "set/train/ant/000.png")


def no_run(ended: Ended) -> None:
    """A second try needs no other --out."""
    assert not (ended.folder / "run" / "config.yaml").exists()


ROWS = (
    Fault(
        name="16 bits",
        arrange=lambda folder: sixteen_bits(folder / "set"),
        command=FILES,
        left=told_apart,
    ),
    Fault(
        name="floats with nan",
        arrange=lambda folder: floats(folder / "set"),
        command=f"{FILES} --data.storage memory",
        left=told_apart,
    ),
    Fault(
        name="exif",
        arrange=lambda folder: lying_on_their_heads(folder / "set"),
        command=f"{FILES} --data.exif-rotate",
        left=told_apart,
    ),
    Fault(
        name="exif of no files",
        arrange=lambda folder: None,
        command=f"{TRAIN} --data.name embedded --data.exif-rotate",
        status=2,
        says=("lewel: data.exif_rotate turns images of files, and embedded has none",),
    ),
    Fault(
        name="one unreadable file is counted once",
        arrange=lambda folder: broken(folder / "set", 1),
        command=f"{FILES} --epochs 2",
        says=("set/train/ant/000.png",),
        left=counted(1),
    ),
    Fault(
        name="an unreadable file of an odd name in a worker",
        arrange=oddly_named,
        command=f"{FILES} --data.workers 1",
        says=("\nlewel: cannot read set/train/ant/a??[31mb.png: it is empty",),
        never=("Traceback", "\x1b[31m", "UserWarning", ".py:"),
        alone=True,
        slow=True,
    ),
    Fault(
        name="ten unreadable files are named",
        arrange=lambda folder: broken(folder / "set", 20, train=60),
        command=FILES,
        says=("more than 10 images in set/train cannot be read",),
        left=named(10),
    ),
    Fault(
        name="too many unreadable files",
        arrange=lambda folder: broken(folder / "set", 5),
        command=FILES,
        status=2,
        says=("lewel: 5 ", *TOO_MANY),
    ),
    Fault(
        name="too many for the workers",
        arrange=lambda folder: broken(folder / "set", 5),
        command=f"{FILES} --data.workers 2",
        status=2,
        says=("lewel: 5 ", *TOO_MANY),
        never=("Traceback", "DataLoader"),
    ),
    Fault(
        name="too many for the memory",
        arrange=lambda folder: broken(folder / "set", 5),
        command=f"{FILES} --data.storage memory",
        status=2,
        says=("lewel: 5 ", *TOO_MANY),
        left=no_run,
    ),
    Fault(
        name="larger than the memory",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{FILES} --data.storage memory --data.image-size 1000000",
        status=2,
        says=("lewel: 20 images of 1000000 pixels take 55,879.4 GiB of memory, ", "free; --data.storage files reads"),
    ),
    Fault(
        name="more memory than a process gets",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{FILES} --data.storage device --data.image-size 10000000",
        patches={"lewel.data.room.free": lambda place: None},
        status=2,
        says=("lewel: 16 images of 10000000 pixels", "which this process does not get; --data.storage files reads"),
    ),
    Fault(
        name="an embedded set larger than the memory",
        arrange=lambda folder: None,
        command=f"{TRAIN} --data.name embedded --data.image-size 1000000",
        status=2,
        says=("lewel: 64 images of 1000000 pixels", "free; choose a smaller --data.image-size"),
    ),
    Fault(
        name="reading into memory is told",
        arrange=lambda folder: labelled(folder / "set", test=1),
        command=f"{FILES} --data.storage memory",
        patches={"lewel.watching.progress.SECONDS_BETWEEN_LINES": -1},
        left=told_as_it_is_read,
    ),
    Fault(
        name="memory is planned for",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{FILES} --data.storage memory --data.image-size 256 --dry-run",
        says=("\n  images in memory             3.8\n  total at the peak",),
    ),
    Fault(
        name="weights that are planned for and larger than the memory",
        arrange=lambda folder: None,
        command=f"{TRAIN} --data.name embedded --heads.hidden 100000000 --method.queue 8 --dry-run",
        says=("total at the peak",),
        slow=True,
    ),
    Fault(
        name="too many within an epoch",  # kNN, which reads all files first, is off
        arrange=lambda folder: broken(folder / "set", 5),
        command=f"{FILES} --knn-every 0",
        status=2,
        says=("lewel: 5 ", *TOO_MANY, "run/checkpoints/step-0000000", "is saved: --resume auto goes on from there"),
    ),
    Fault(
        name="any number may be allowed",
        arrange=lambda folder: broken(folder / "set", 15),
        command=f"{FILES} --data.max-unreadable 1",
        left=counted(15),
    ),
    Fault(
        name="none may be",
        arrange=lambda folder: broken(folder / "set", 1),
        command=f"{FILES} --data.max-unreadable 0",
        status=2,
        says=("lewel: 1 of the 16 images", "share of 0"),
    ),
    Fault(
        name="nothing can be read",
        arrange=lambda folder: broken(folder / "set", 16),
        command=f"{FILES} --data.workers 1 --data.max-unreadable 1",
        status=2,
        says=("lewel: none of the 16 images in set/train can be read",),
    ),
    Fault(
        name="three of four classes gone",
        arrange=four_classes,
        command=f"{FILES} --epochs 10000 --data.workers 1 --knn-every 0",
        during=remove_three,
        status=2,
        says=("of the 64 images in set/train could not be read", "is saved: --resume auto goes on from there"),
        left=goes_on,
        slow=True,
    ),
    Fault(
        name="resumed with an image exchanged",
        arrange=lambda folder: trained(folder, lambda root: picture(root / "train" / "bee" / "003.png", 200)),
        command=RESUME,
        status=2,
        says=("trained on other images: 1 hold something else under the same name, the first set/train/bee/003.png",),
    ),
    Fault(
        name="resumed with an image renamed",
        arrange=lambda folder: trained(
            folder, lambda root: (root / "train" / "bee" / "003.png").rename(root / "train" / "bee" / "9.png")
        ),
        command=RESUME,
        status=2,
        says=("trained on other images: the 16 images in set/train have other names",),
    ),
    Fault(
        name="resumed elsewhere",
        arrange=lambda folder: trained(folder, moved),
        command=RESUME.replace("--data.root set", "--data.root elsewhere"),
        says=("continuing after step 2",),
    ),
    Fault(
        name="resumed with lists of other names",
        arrange=lists_moved,
        command=f"{RESUME} --data.train-list m.txt --data.classes d.txt",
        says=("continuing after step 2",),
    ),
    Fault(
        name="resumed with another list",
        arrange=lambda folder: lists_moved(folder, shorter=True),
        command=f"{RESUME} --data.train-list m.txt --data.classes d.txt",
        status=2,
        says=("was trained on 16 images but there are 15 now",),
    ),
    Fault(
        name="resumed with an image repaired",
        arrange=mended,
        command=RESUME,
        says=("continuing after step 2",),
    ),
    Fault(
        name="a run of an earlier version continued",
        arrange=of_before,
        command=RESUME,
        says=("continuing after step 2", "an earlier version wrote it, which showed pictures of 16 bits"),
    ),
    Fault(
        name="images that an earlier version did not count",
        arrange=lambda folder: of_before(folder, beside=3),
        command=RESUME,
        status=2,
        says=("was trained on 16 images but there are 19 now", "which did not count images beside class folders"),
    ),
    Fault(
        name="more pixels than allowed",
        arrange=large,
        command=f"{FILES} --data.max-pixels 100000",
        says=(
            "set/train/ant/000.png: it has 120,000 pixels, more than data.max_pixels 100,000, which --data.max-pixels",
        ),
        left=counted(1),
    ),
    Fault(
        name="more pixels than Pillow allows",
        arrange=large,
        command=FILES,
        patches={"PIL.Image.MAX_IMAGE_PIXELS": 10_000},
        never=("Traceback", "DecompressionBomb", "cannot be read", "cannot read"),
    ),
    Fault(
        name="maps of more pixels than allowed",
        arrange=limited,
        command="maps run x.png",
        status=2,
        says=("lewel: cannot read x.png", "it has 120,000 pixels", "--data.max-pixels"),
    ),
)
