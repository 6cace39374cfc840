"""Where images are, and what of them has labels."""

from __future__ import annotations

import os
from pathlib import Path

from fault import OF_FILES, TRAIN, Ended, Fault, labelled, picture, pictures
from PIL import Image

import lewel
from lewel.watching import log

OFF = "kNN is off: "


def trained_without_labels(ended: Ended) -> None:
    """The run is whole, with pictures and a report, and nothing in it speaks of kNN."""
    run = ended.folder / "run"
    for name in ("report.txt", "maps.png", "curves.png", "checkpoints"):
        assert (run / name).exists(), name
    records = log.read(run / "log.jsonl")
    assert "epoch" in {record["kind"] for record in records}
    assert not [key for record in records for key in record if key.startswith("knn")]
    assert "kNN" not in (run / "report.txt").read_text()


def compared(ended: Ended) -> None:
    """The run has an accuracy before and after."""
    kinds = {record["kind"]: record for record in log.read(ended.folder / "run" / "log.jsonl")}
    assert "knn_pixels" in kinds["baselines"]
    assert "knn" in kinds["epoch"]


def nothing_written(ended: Ended) -> None:
    assert not (ended.folder / "run").exists()


def classes(folder: Path, count: int = 10) -> None:
    for name in ("ant", "bee"):
        pictures(folder / name, count)


def as_imagenet(root: Path) -> None:
    """root/train, and root/val with its test images."""
    labelled(root)
    (root / "test").rename(root / "val")


def listed(folder: Path, *lines: str, name: str = "list.txt") -> None:
    (folder / name).write_text("\n".join(lines))


def tiny_imagenet(folder: Path) -> None:
    as_imagenet(folder / "set")
    pictures(folder / "set" / "test" / "images", 5)


def imagenet_with_empty_test(folder: Path) -> None:
    as_imagenet(folder / "set")
    (folder / "set" / "test").mkdir()


def imagenet_with_empty_classes_in_test(folder: Path) -> None:
    as_imagenet(folder / "set")
    for name in ("ant", "bee"):
        (folder / "set" / "test" / name).mkdir(parents=True)


def beside_the_classes(folder: Path) -> None:
    labelled(folder / "set")
    pictures(folder / "set" / "train", 40)


def train_leads_nowhere(folder: Path) -> None:
    labelled(folder / "set")
    (folder / "set" / "train").rename(folder / "away")
    (folder / "set" / "train").symlink_to("/gone/train")


def val_leads_nowhere(folder: Path) -> None:
    classes(folder / "set" / "train")
    (folder / "set" / "val").symlink_to("/gone/val")


def class_called_train(folder: Path) -> None:
    for split, count in (("train", 8), ("test", 6)):
        for name in ("apple", "train", "bus"):
            pictures(folder / "set" / split / name, count)


def cityscapes(folder: Path) -> None:
    for kind in ("gtFine", "leftImg8bit"):
        for split in ("train", "val"):
            pictures(folder / "city" / kind / split / "aachen", 8)


def divided_by_other_names(folder: Path) -> None:
    for name in ("coco/train2017", "coco/val2017", "coco/test2017", "im/train.X1/n1", "im/train.X2/n2", "im/val.X/n1"):
        pictures(folder / name, 8)
    for split in ("train/n1", "val", "test"):
        pictures(folder / "ILSVRC" / "Data" / "CLS-LOC" / split, 8)


def archives(folder: Path) -> None:
    folder.mkdir()
    for ending in ("parquet", "tar", "zip"):
        (folder / f"x.{ending}").write_bytes(b"")


def class_of_a_run(folder: Path) -> None:
    labelled(folder / "set")
    (folder / "set" / "train" / "bee" / "config.yaml").write_text("")
    (folder / "set" / "train" / "bee" / "checkpoints").mkdir()


def classes_that_are_one(folder: Path) -> None:
    labelled(folder / "set")
    (folder / "set" / "train").rename(folder / "away")
    (folder / "set" / "train").mkdir()
    for name in ("ant", "bee"):
        (folder / "set" / "train" / name).symlink_to("../../away/ant")


def class_that_leads_nowhere(folder: Path) -> None:
    labelled(folder / "set")
    (folder / "set" / "train" / "bee").rename(folder / "away")
    (folder / "set" / "train" / "bee").symlink_to("/gone/bee")


def listed_without_a_class(folder: Path) -> None:
    labelled(folder / "set")
    for split in ("train", "test"):
        pictures(folder / "set" / split / "cow", 3)
    listed(folder, *(f"{name}/{i:03}.png" for name in ("ant", "bee") for i in range(8)))


def compared_with_themselves(folder: Path) -> None:
    """In the class ant."""
    labelled(folder / "set", test=8)
    for split in ("train", "test"):
        (folder / "set" / split / "ant").rename(folder / split)
        (folder / "set" / split / "ant").symlink_to("../../train")


def runs_beside(folder: Path) -> None:
    """And notes, and images."""
    labelled(folder / "set")
    picture(folder / "set" / "runs" / "a" / "maps.png")
    listed(folder / "set" / "runs" / "a", name="config.yaml")
    (folder / "set" / "notes").mkdir()
    listed(folder / "set" / "notes", "none")
    pictures(folder / "set" / "unlabeled" / "2020", 3)


def several(folder: Path) -> None:
    """The second place links to the first."""
    labelled(folder / "set")
    pictures(folder / "more" / "2020" / "may", 9, "jpg")
    (folder / "more" / "again").symlink_to("../set/train")


def in_a_list(folder: Path) -> None:
    pictures(folder / "pictures", 12)
    names = [f"../pictures/{i:03}.png" for i in range(10)]
    (folder / "lists").mkdir()
    lines = [*names[:3], f"{names[3]} 7", f"{names[4]},7", f"{names[5]}\t7", "", "# a comment", *names[6:]]
    lines += [str(folder / "pictures" / "010.png"), names[0]]
    (folder / "lists" / "all.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


def in_a_list_with_holes(folder: Path) -> None:
    pictures(folder / "pictures", 12)
    lines = [f"pictures/{i:03}.png" for i in range(14)]
    listed(folder, *lines, "pictures", "tiny.yaml")


def loops(folder: Path) -> None:
    """24 training images, and links to what they lie in."""
    labelled(folder / "set", train=12)
    for name in ("ant", "bee"):
        inside = folder / "set" / "train" / name
        for link, to in (("up", ".."), ("root", "../.."), ("itself", ".")):
            (inside / link).symlink_to(to)
    (folder / "set" / "train" / "ant" / "gone.png").symlink_to("nowhere.png")
    (folder / "set" / "train" / "ant" / "circle").symlink_to("circle")


def odd_files(folder: Path) -> None:
    labelled(folder / "set")
    ant = folder / "set" / "train" / "ant"
    for ending in ("pgm", "jfif", "jpe", "pbm", "pnm", "avif", "jp2", "heic"):
        picture(ant / "odd.png").rename(ant / f"odd.{ending}")
    picture(ant / "odd.png").rename(ant / "odd")
    picture(ant / "._000.png")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found"):
        picture(ant / name / "000.png")
    picture(folder / "set" / "train" / "@eaDir" / "000.png")
    (folder / "set" / "train" / "cat").mkdir()
    os.mkfifo(ant / "pipe.png")
    pictures(folder / "set" / "unlabeled", 3)
    picture(folder / "set" / "cover.jpg")


def listed_in_every_form(folder: Path) -> None:
    """Each of 16 images once."""
    labelled(folder / "set", train=10)
    (folder / "link").symlink_to("set/train/bee")
    lines = [f"../train/ant/{i:03}.png" for i in range(3)]
    lines += [f"./ant/{i:03}.png" for i in range(3, 5)]
    lines += [str(folder / "set" / "train" / "ant" / f"{i:03}.png") for i in range(5, 7)]
    lines += ["train/ant/007.png", "set/train/ant/008.png", "ant/009.png 0", "bee/000.png,1", "bee/001.png\t1"]
    lines += [f"link/{i:03}.png" for i in range(2, 4)] + [str(folder / "link" / "004.png"), "bee/005.png  # a comment"]
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


def listed_that_are_not_there(folder: Path) -> None:
    labelled(folder / "set")
    picture(folder / "elsewhere.png")
    listed(folder, *(f"ant/{i:03}.png" for i in range(8)), "ant/008.png", str(folder / "elsewhere.png"), "ant")


def listed_beyond_the_classes(folder: Path) -> None:
    labelled(folder / "set", train=10)
    listed(folder, *(f"{name}/{i:03}.png" for name in ("ant", "bee") for i in range(9)))
    (folder / "classes.txt").write_bytes(b"\xef\xbb\xbfant\r\n")


def trained_flat(folder: Path) -> None:
    """A run on images without labels, and labelled ones."""
    pictures(folder / "set", 20)
    classes(folder / "known")
    lewel.train(config=OF_FILES, data=folder / "set", out=folder / "run")


def trained_inside(folder: Path) -> None:
    """A run on images that it lies among."""
    pictures(folder / "set", 20)
    lewel.train(config=OF_FILES, data=folder / "set", out=folder / "set" / "runs" / "a")


def unreadable_tests(folder: Path) -> None:
    labelled(folder / "set")
    for path in (folder / "set" / "test").rglob("*.png"):
        path.write_bytes(b"")


def finished_without_maps(ended: Ended) -> None:
    run = ended.folder / "run"
    assert (run / "report.txt").exists()
    assert not (run / "maps.png").exists()


def trained_and_fewer(folder: Path) -> None:
    """A run of one epoch, and fewer images of the same classes."""
    labelled(folder / "set", train=12)
    lewel.train(config=OF_FILES, data=folder / "set", out=folder / "run")
    labelled(folder / "other", train=4)


def headers(folder: Path) -> None:
    pictures(folder / "set", 14)
    image = Image.new("RGB", (60, 50))
    image.getexif()[0x0112] = 6
    image.save(folder / "set" / "turned.jpg", exif=image.getexif())
    image.convert("RGBA").save(folder / "set" / "clear.png")
    (folder / "set" / "broken.jpg").write_bytes(b"")


ROWS = (
    Fault(
        name="labelled",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{TRAIN} --data.root set --out run",
        says=("kNN-200", "found 16 training images in set/train: 16 .png; in 2 class folders of 8 each; 40x32 pixels"),
        left=compared,
    ),
    Fault(
        name="flat",
        arrange=lambda folder: pictures(folder / "set", 20),
        command=f"{TRAIN} --data.root set --out run",
        says=("found 20 training images in set", OFF, "--data.eval ROOT names labelled images", "knn_every: 0"),
        left=trained_without_labels,
    ),
    Fault(
        name="flat train",
        slow=True,
        arrange=lambda folder: pictures(folder / "set" / "train", 20),
        command=f"{TRAIN} --data.root set --out run",
        says=(f"{OFF}set/train holds no class folders",),
        left=trained_without_labels,
    ),
    Fault(
        name="class folders alone",
        arrange=lambda folder: classes(folder / "set"),
        command=f"{TRAIN} --data.root set --out run",
        says=("found 20 training images", OFF, "--data.eval set"),
        left=trained_without_labels,
    ),
    Fault(
        name="class folders alone, decoded once",
        slow=True,
        arrange=lambda folder: classes(folder / "set"),
        command=f"{TRAIN} --data.root set --out run --data.storage memory",
        says=(OFF,),
        left=trained_without_labels,
    ),
    Fault(
        name="class folders compared",
        arrange=lambda folder: classes(folder / "set"),
        command=f"{TRAIN} --data.root set --data.eval set --out run",
        says=("kNN: 16 images of 2 classes in the bank (set), 4 test images (every 5th of a class there)",),
        left=compared,
    ),
    Fault(
        name="train without test",
        slow=True,
        arrange=lambda folder: classes(folder / "set" / "train"),
        command=f"{TRAIN} --data.root set --out run",
        says=(f"{OFF}set holds no folder test or val",),
        left=trained_without_labels,
    ),
    Fault(
        name="flat beside labelled",
        arrange=lambda folder: (pictures(folder / "set", 20), labelled(folder / "known")),
        command=f"{TRAIN} --data.root set --data.eval known --out run",
        says=(
            "20 training images",
            "kNN: 16 images of 2 classes in the bank (known/train), 4 test images (known/test)",
        ),
        left=compared,
    ),
    Fault(
        name="nested deeply",
        slow=True,
        arrange=lambda folder: [pictures(folder / "set" / "2020" / str(i) / "raw", 6) for i in range(3)],
        command=f"{TRAIN} --data.root set --out run",
        says=("found 18 training images", OFF),
        left=trained_without_labels,
    ),
    Fault(
        name="a training folder that leads nowhere",
        arrange=train_leads_nowhere,
        command=f"{TRAIN} --data.root set --out run",
        says=("set/train is a link to /gone/train, which is not there or may not be read", "Restore what it leads to"),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="a test folder that leads nowhere",
        arrange=val_leads_nowhere,
        command=f"{TRAIN} --data.root set --dry-run",
        says=(
            "kNN is off: set/val is a link to /gone/val, which is not there",
            "links that lead nowhere: 1, set/val",
        ),
    ),
    Fault(
        name="a class called train",
        arrange=class_called_train,
        command=f"{TRAIN} --data.root set/train --dry-run",
        says=(
            "found 24 training images in set/train:",
            "3 folders: apple 8, bus 8, train 8",
            "taken for a class; to train on it alone",
        ),
    ),
    Fault(
        name="a class called train, compared",
        arrange=class_called_train,
        command=f"{TRAIN} --data.root set --data.eval set/test --dry-run",
        says=("kNN: 15 images of 3 classes in the bank (set/test), 3 test images",),
    ),
    Fault(
        name="images and their masks, each divided",
        arrange=cityscapes,
        command=f"{TRAIN} --data.root city --dry-run",
        says=(
            "gtFine/, leftImg8bit/ hold training and test images each, name what to use of them: --data.root FOLDER",
        ),
    ),
    Fault(
        name="images and their masks",
        arrange=lambda folder: [
            pictures(folder / "voc" / name, n) for name, n in (("JPEGImages", 10), ("Classes", 8), ("Objects", 8))
        ],
        command=f"{TRAIN} --data.root voc --dry-run",
        says=(
            "found 26 training images in voc",
            "in 3 folders: Classes 8, JPEGImages 10, Objects 8",
        ),
    ),
    Fault(
        name="images and their masks, further down",
        arrange=lambda folder: [pictures(folder / "kit" / "2012" / name, 8) for name in ("Images", "Masks")],
        command=f"{TRAIN} --data.root kit --dry-run",
        says=("found 16 training images in kit: 16 .png; in 2 folders: 2012/Images 8, 2012/Masks 8",),
    ),
    Fault(
        name="divided as in COCO",
        arrange=divided_by_other_names,
        command=f"{TRAIN} --data.root coco --dry-run",
        says=("those of test2017/, val2017/ too; without them: --data.root coco/train2017",),
        never=("Traceback", "--data.eval coco"),
    ),
    Fault(
        name="divided into parts",
        arrange=divided_by_other_names,
        command=f"{TRAIN} --data.root im --dry-run",
        says=("those of val.X/ too; without them: --data.root im/train.X1 im/train.X2",),
    ),
    Fault(
        name="divided far below",
        arrange=divided_by_other_names,
        command=f"{TRAIN} --data.root ILSVRC --dry-run",
        says=(
            "those of Data/CLS-LOC/test/, Data/CLS-LOC/val/ too",
            "to use these: --data.root ILSVRC/Data/CLS-LOC",
        ),
    ),
    Fault(
        name="splits for classes",
        arrange=divided_by_other_names,
        command=f"{TRAIN} --data.root im --data.eval coco --out run",
        says=(
            "its folders are no classes",
            "--data.eval coco/test2017",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="a named place without images",
        arrange=lambda folder: (labelled(folder / "a"), (folder / "b" / "train").mkdir(parents=True)),
        command=f"{TRAIN} --data.root a b --out run",
        says=("there are no images in data.root b/train: it is empty", "put some there, or leave the place out"),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="a named place of archives",
        arrange=lambda folder: (labelled(folder / "a"), archives(folder / "b")),
        command=f"{TRAIN} --data.root a b --out run",
        says=(
            "there are no images in data.root b: it holds x.parquet, x.tar, x.zip; unpack x.tar, x.zip",
            "1 .parquet",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="a class folder that is a run",
        arrange=class_of_a_run,
        command=f"{TRAIN} --data.root set --out run",
        says=(
            "no images come from the class folder set/train/bee: set/train/bee is one of the folders of training runs",
            "change that, or remove the folder",
        ),
        never=("Traceback", "put some in"),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="two class folders that are one",
        arrange=classes_that_are_one,
        command=f"{TRAIN} --data.root set --out run",
        says=("set/train/bee is one of the folders that are read under another path already: set/train/ant",),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="a class folder that leads nowhere",
        arrange=class_that_leads_nowhere,
        command=f"{TRAIN} --data.root set --out run",
        says=(
            "no images come from the class folder set/train/bee: set/train/bee is one of the links that lead nowhere",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="listed without a class of test",
        arrange=listed_without_a_class,
        command=f"{TRAIN} --data.root set --data.train-list list.txt --dry-run",
        says=("kNN: 16 images of 2 classes", "7 test images", "3 of these are of classes that the bank lacks (cow)"),
    ),
    Fault(
        name="training images for test images",
        arrange=compared_with_themselves,
        command=f"{TRAIN} --data.root set --dry-run",
        says=("too, and compared with themselves: those in set/test/ant\n",),
    ),
    Fault(
        name="classes too small for a test image",
        arrange=lambda folder: (classes(folder / "set"), pictures(folder / "set" / "cow", 4)),
        command=f"{TRAIN} --data.root set --data.eval set --dry-run",
        says=(
            "4 test images (every 5th of a class there); classes of fewer than 5 images, which have no test image: 1",
        ),
    ),
    Fault(
        name="runs beside the training images",
        arrange=runs_beside,
        command=f"{TRAIN} --data.root set --dry-run",
        says=("not used, beside train/ and test/ in set: notes/, runs/, unlabeled/", "--data.root set set/unlabeled"),
    ),
    Fault(
        name="several places",
        arrange=several,
        command=f"{TRAIN} --data.root set more --out run",
        says=(
            "found 25 training images in set/train, more",
            "images that data.root names twice: 16",
            "9 training images",
        ),
        left=compared,
    ),
    Fault(
        name="a list of images",
        arrange=in_a_list,
        command=f"{TRAIN} --data.root lists/all.txt --out run",
        says=("found 11 training images", "labels come from folders", "images that are listed twice: 1", OFF),
        left=trained_without_labels,
    ),
    Fault(
        name="a list of images that are not there",
        arrange=in_a_list_with_holes,
        command=f"{TRAIN} --data.root list.txt --out run",
        says=(
            "lists what is no image in 4 of 16 lines",
            "'pictures/012.png' (there is no such file)",
            "'pictures' (a folder)",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="an archive",
        arrange=lambda folder: (folder / "set.tar.gz").write_bytes(b""),
        command=f"{TRAIN} --data.root set.tar.gz --out run",
        says=("set.tar.gz is a file; unpack it",),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="an image for a folder",
        arrange=lambda folder: picture(folder / "one.png"),
        command=f"{TRAIN} --data.root one.png --out run",
        says=("one.png is a file, but no text that lists names",),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="no image that is read",
        arrange=lambda folder: [
            picture(folder / "set" / "0.png").rename(folder / "set" / f"{i}.avif") for i in range(3)
        ],
        command=f"{TRAIN} --data.root set --out run",
        says=("there are no images in data.root set", "3 .avif", ".jpg"),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="flat labels",
        arrange=lambda folder: (pictures(folder / "set", 20), pictures(folder / "known", 20)),
        command=f"{TRAIN} --data.root set --data.eval known --out run",
        says=("data.eval known has no labels", "there are no class folders", "a folder of images for each class"),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="labels in val alone",
        arrange=lambda folder: (pictures(folder / "set", 20), classes(folder / "known" / "val")),
        command=f"{TRAIN} --data.root set --data.eval known --out run",
        says=("its folders are no classes", "--data.eval known/val"),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="labels for a set that has its own",
        arrange=lambda folder: classes(folder / "known"),
        command=f"{TRAIN} --data.name embedded --data.eval known --out run",
        says=("data.eval known names labelled images beside those of --data.name folder",),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="val beside a flat test",
        arrange=tiny_imagenet,
        command=f"{TRAIN} --data.root set --out run",
        says=("4 test images (set/val)", "not used", "test/"),
        left=compared,
    ),
    Fault(
        name="val beside an empty test",
        arrange=imagenet_with_empty_test,
        command=f"{TRAIN} --data.root set --out run",
        says=("4 test images (set/val)",),
        left=compared,
    ),
    Fault(
        name="val beside empty classes of test",
        slow=True,
        arrange=imagenet_with_empty_classes_in_test,
        command=f"{TRAIN} --data.root set --out run",
        says=("4 test images (set/val)",),
        left=compared,
    ),
    Fault(
        name="images beside class folders",
        arrange=beside_the_classes,
        command=f"{TRAIN} --data.root set --out run",
        says=("found 56 training images", "kNN: 16 images", "40 training images have no label"),
        left=compared,
    ),
    Fault(
        name="images beside class folders, decoded once",
        slow=True,
        arrange=beside_the_classes,
        command=f"{TRAIN} --data.root set --data.storage memory --out run",
        says=("found 56 training images", "kNN: 16 images"),
        left=compared,
    ),
    Fault(
        name="one class",
        arrange=lambda folder: [pictures(folder / "set" / split / "ant", 12) for split in ("train", "test")],
        command=f"{TRAIN} --data.root set --out run",
        says=("kNN means nothing here", "100 %", "--knn-every 0", "kNN: 12 images of one class"),
        left=compared,
    ),
    Fault(
        name="too few that are read",
        arrange=lambda folder: (odd_files(folder), (folder / "set" / "train").rename(folder / "odd")),
        command=f"{TRAIN} --data.root odd --data.batch-size 64 --method.queue 64 --out run",
        says=(
            "there are only 21 training images",
            "passed over, files of kinds that are not read",
            "--data.batch-size",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="links that loop",
        arrange=loops,
        command=f"{TRAIN} --data.root set --out run",
        says=(
            "found 24 training images",
            "links that lead back to a folder they lie in: 6, such as set/train/ant/itself",
            "links that lead nowhere: 2",
        ),
    ),
    Fault(
        name="odd files and folders",
        arrange=odd_files,
        command=f"{TRAIN} --data.root set --out run",
        says=(
            "found 21 training images in set/train: 16 .png, 1 .jfif, 1 .jpe, 1 .pbm, 1 .pgm, 1 .pnm",
            "files of kinds that are not read: 1 without suffix, 1 .avif, 1 .heic, 1 .jp2, such as",
            "folders of a system's own: 5",
            "hidden files and folders: 2",
            "folders without images: 1, set/train/cat",
            "pipes, sockets and devices: 1, set/train/ant/pipe.png",
            "unlabeled/, 1 image; to train on more, name it too: --data.root set set/unlabeled",
        ),
    ),
    Fault(
        name="headers",
        arrange=headers,
        command=f"{TRAIN} --data.root set --dry-run",
        says=(
            "40x32 to 60x50 pixels",
            "of 17 that were looked at, 1 have an EXIF rotation, ignored without --data.exif-rotate",
            "1 have transparency, which is dropped",
            "1 cannot be read",
        ),
    ),
    Fault(
        name="a dry run of images without labels",
        arrange=in_a_list,
        command=f"{TRAIN} --data.root lists/all.txt --dry-run",
        says=("found 11 training images", "counted in lists/all.txt", OFF, "knn_every: 0"),
    ),
    Fault(
        name="listed in every form",
        arrange=listed_in_every_form,
        command=f"{TRAIN} --data.root set --data.train-list list.txt --out run",
        says=("found 16 training images", "in 2 class folders of 6 (bee) to 10 (ant)", "labels beside the paths"),
    ),
    Fault(
        name="listed and not there",
        arrange=listed_that_are_not_there,
        command=f"{TRAIN} --data.root set --data.train-list list.txt --out run",
        says=(
            "lists 3 images that are not in set/train",
            "'ant/008.png' (there is no such file)",
            "not below",
            "a folder",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="listed in no class of use",
        arrange=listed_beyond_the_classes,
        command=f"{TRAIN} --data.root set --data.train-list list.txt --data.classes classes.txt --out run",
        says=("found 9 training images", "that data.train_list lists and are not in a class of data.classes: 9"),
    ),
    Fault(
        name="listed without labels",
        slow=True,
        arrange=lambda folder: (
            pictures(folder / "set", 20),
            listed(folder, *(f"{i:03}.png 1" for i in range(0, 20, 2))),
        ),
        command=f"{TRAIN} --data.root set --data.train-list list.txt --out run",
        says=("found 10 training images in set", OFF),
        left=trained_without_labels,
    ),
    Fault(
        name="other classes in test",
        arrange=lambda folder: (labelled(folder / "set"), picture(folder / "set" / "train" / "cat" / "0.png")),
        command=f"{TRAIN} --data.root set --out run",
        says=(
            "must hold the same class folders",
            "'cat' in set/train; --data.eval ROOT names other",
            "--data.root set/train alone trains without labels",
        ),
        status=2,
        left=nothing_written,
    ),
    Fault(
        name="kNN of a run without labels",
        arrange=trained_flat,
        command="eval knn run",
        says=("kNN compares labels, and the images of run have none", "--data-eval ROOT"),
        status=2,
    ),
    Fault(
        name="kNN of a run without labels, given some",
        arrange=trained_flat,
        command="eval knn run --data-eval known",
        says=("run: kNN-200",),
    ),
    Fault(
        name="continued with labels",
        slow=True,
        arrange=trained_flat,
        command=f"{TRAIN} --data.root set --data.eval known --epochs 1 --out run --resume auto",
        says=("kNN: 16 images of 2 classes", "continuing after step 2"),
    ),
    Fault(
        name="a run among its images",
        arrange=trained_inside,
        command=f"{TRAIN} --data.root set --out set/runs/a --resume auto",
        says=("found 20 training images", "folders of training runs, whose pictures are no data: 1, set/runs/a"),
    ),
    Fault(
        name="unreadable test images that nothing compares",
        arrange=unreadable_tests,
        command=f"{TRAIN} --data.root set --out run --knn-every 0 --epochs 2",
        says=(
            "no statistics of the maps: none of the 4 images in set/test can be read",
            "wrote run/curves.png, and no run/maps.png: none of the 4 images",
        ),
        left=finished_without_maps,
    ),
    Fault(
        name="kNN elsewhere",
        arrange=trained_and_fewer,
        command="eval knn run --data-root other",
        says=("% after epoch 1\n",),
    ),
    Fault(
        name="continued with other labels",
        arrange=trained_and_fewer,
        command=f"{TRAIN} --data.root set --data.eval other --out run --resume auto",
        says=("kNN compares the images of other from here on, before it compared those of ",),
    ),
    Fault(
        name="a run in the folder of its images",
        arrange=lambda folder: (
            pictures(folder / "set", 20),
            lewel.train(config=OF_FILES, data=folder / "set", out=folder / "set"),
        ),
        command=f"{TRAIN} --data.root set --out set --resume auto",
        says=("found 20 training images", "passed over, pictures of a training run: 2, such as set/curves.png"),
    ),
    Fault(
        name="a bank of a few",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{TRAIN} --data.root set --knn-bank 2 --dry-run",
        says=("kNN: 16 images of 2 classes in the bank", "knn_bank takes 2 of the images in the bank"),
    ),
    Fault(
        name="kNN that the recipe leaves out",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{TRAIN} --data.root set --knn-every 0 --dry-run",
        says=("kNN is off: the recipe has knn_every 0",),
        never=("Traceback", "in the bank"),
    ),
    Fault(
        name="images without a recipe",
        arrange=lambda folder: pictures(folder / "set", 20),
        command="train --data.root set --data.batch-size 8 --method.queue 8 --dry-run",
        says=("name: folder", "found 20 training images in set"),
    ),
    Fault(
        name="a place that a shell left empty",
        arrange=lambda folder: None,
        command="train --data.root ''",
        says=("data.root is empty",),
        status=2,
    ),
    Fault(
        name="a user who is not there",
        arrange=lambda folder: None,
        command=f"{TRAIN} --data.root ~nobody-of-this-name/set --out run",
        says=("is not a folder",),
        status=2,
        left=nothing_written,
    ),
)
