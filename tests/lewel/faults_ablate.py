"""Ablations that cannot be run as they were asked for, rows that fail, and folders without runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_rows
from fault import Ended, Fault, labelled

from lewel.ablations import rows, tables


def nothing(folder: Path) -> None: ...


def row(name: str = "lewel_m", table: str = "table5", *, epochs: int = 12, linear: float | None = None):
    """A finished row in ROWS, as one of so many epochs was trained."""

    def arrange(folder: Path) -> None:
        asked = rows.Asked(tables.chosen(table), seeds=(0,), epochs=epochs, out="rows")
        (run,) = (each for each in rows.of(asked) if each.row.name == name)
        fake_rows.of(replace(run, folder=folder / run.folder), linear=linear)

    return arrange


def with_a_bad_recipe(folder: Path) -> None:
    row()(folder)
    (folder / "rows/lewel_m-seed0/config.yaml").write_text("epochs: [")


def with_a_bad_result(folder: Path) -> None:
    row(linear=50.0)(folder)
    for path in (folder / "rows/lewel_m-seed0/eval").iterdir():
        path.write_text('{"kind": "linear-cached", "accu')


def with_a_lock(folder: Path) -> None:
    row()(folder)
    (folder / "rows/lewel_m-seed0/lock.json").write_text("")


def images(folder: Path) -> None:
    """Too few for a step of the preset."""
    labelled(folder / "images", train=1, test=1)


def row_of_images(folder: Path) -> None:
    """A finished row on the images of images/, beside which are other ones and a link."""
    images(folder)
    (folder / "other").mkdir()
    (folder / "linked").symlink_to("images")
    asked = rows.Asked(("table5",), "imagenet100", roots=("images",), seeds=(0,), out="rows")
    (run,) = (each for each in rows.of(asked) if each.row.name == "lewel_m")
    fake_rows.of(replace(run, folder=folder / run.folder))


def nothing_is_written(ended: Ended) -> None:
    assert not (ended.folder / "rows").exists()
    assert not (ended.folder / "runs").exists()


def is_as_it_was(ended: Ended) -> None:
    assert [path.name for path in (ended.folder / "rows").iterdir()] == ["lewel_m-seed0"]


def has_dashes(ended: Ended) -> None:
    lines = (ended.folder / "rows/table5.md").read_text().splitlines()
    assert sum(line.split()[-6:] == ["-", "|", "0", "of", "1", "|"] for line in lines) == 4


TABLE5 = "ablate table5 --out rows --seeds 0"
ROWS = (
    Fault("unknown-table", nothing, "ablate table8 --out rows", status=2, left=nothing_is_written,
          says=("there is no table 'table8' to ablate; there are table5, table6, table7, fig3a, fig3b, fig3, all",)),
    Fault("unknown-data", nothing, f"{TABLE5} --data imagenet", status=2, left=nothing_is_written,
          says=("--data must be one of embedded, cifar10, cifar10_200,", "got 'imagenet'")),
    Fault("no-images", nothing, f"{TABLE5} --data imagenet100", status=2, left=nothing_is_written,
          says=("imagenet100 is a folder of images; name it by --root DIR",)),
    Fault("images-of-the-embedded-set", nothing, f"{TABLE5} --root images", status=2, left=nothing_is_written,
          says=("--root and --classes name image files, and the embedded images are in none",)),
    Fault("seed-twice", nothing, "ablate table5 --out rows --seeds 1 2 1", status=2, left=nothing_is_written,
          says=("--seeds must be one whole number or several different ones, got 1 2 1",)),
    Fault("no-jobs", nothing, f"{TABLE5} --jobs 0", status=2, left=nothing_is_written,
          says=("--jobs must be at least 1, got 0",)),
    Fault("no-epochs", nothing, f"{TABLE5} --epochs 0", status=2, left=nothing_is_written,
          says=("epochs must be positive, got 0",)),
    Fault("two-modes", nothing, f"{TABLE5} --commands --report", status=2, says=("give one of them",)),
    Fault("under-torchrun", nothing, TABLE5, status=2, left=nothing_is_written, says=("call it without torchrun",),
          env={"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}),
    Fault("set-without-value", nothing, f"{TABLE5} --set optim.lr", status=2, left=nothing_is_written,
          says=("--set takes NAME=VALUE, as in --set optim.momentum=0.95, got optim.lr",)),
    Fault("set-of-a-flag", nothing, f"{TABLE5} --set seed=3", status=2, left=nothing_is_written,
          says=("--set seed has a flag of its own: --seeds",)),
    Fault("set-twice", nothing, f"{TABLE5} --set optim.lr=1 optim.lr=2", status=2, says=("optim.lr is given twice",)),
    Fault("set-unknown", nothing, f"{TABLE5} --set optim.rate=1", status=2, left=nothing_is_written,
          says=("there is no optim.rate",)),
    Fault("set-no-value", nothing, f"{TABLE5} --set optim.lr=[1", status=2, says=("[1 is no value; write a number",)),
    Fault("set-what-a-row-compares", nothing, f"{TABLE5} --set heads.coupling=separate", status=2,
          left=nothing_is_written,
          says=("--set heads.coupling would change what rows are compared by: Table 5: the two losses",)),
    Fault("set-what-another-table-compares", nothing, "ablate table5 --out rows --set heads.maps=random", status=2,
          left=nothing_is_written, says=("--set heads.maps would change what rows are compared by: Table 6: MoCo v2",)),
    Fault("set-what-presets-differ-in", nothing, "ablate table6 --out rows --set optim.lr=0.4", status=2,
          left=nothing_is_written,
          says=("--set optim.lr would change what rows are compared by: embedded/moco_v2 has 0.5, emb",)),
    Fault("set-what-fits-no-row", nothing, f"{TABLE5} --set heads.tau=0", status=2, left=nothing_is_written,
          says=("heads.tau",)),
    Fault("set-maps-without-a-quarter", nothing, "ablate fig3b --out rows --set heads.num_maps=2", status=2,
          left=nothing_is_written,
          says=("heads.num_maps must be a multiple of 4, for the table has rows with K/4 of them, got 2",)),
    Fault("set-maps-to-none", nothing, f"{TABLE5} --set heads.num_maps=0", status=2, left=nothing_is_written,
          says=("--set heads.num_maps must be a whole number of 1 or more, got 0",)),
    Fault("set-maps-to-a-switch", nothing, f"{TABLE5} --set heads.num_maps=true", status=2, left=nothing_is_written,
          says=("--set heads.num_maps must be a whole number of 1 or more, got True",)),
    Fault("images-nowhere", nothing, f"{TABLE5} --data imagenet100 --root nowhere", status=2, left=nothing_is_written,
          says=("data.root nowhere is not a folder; there is no nowhere in",)),
    Fault("lines-for-images-nowhere", nothing, f"{TABLE5} --data imagenet100 --root nowhere --commands", status=2,
          left=nothing_is_written, says=("data.root nowhere is not a folder; there is no nowhere in",)),
    Fault("a-set-without-its-place", nothing, f"{TABLE5} --data cifar10 --commands", status=2, left=nothing_is_written,
          says=("data.root is empty; --data.root must name the folder that holds cifar10",)),
    Fault("classes-nowhere", images, f"{TABLE5} --data imagenet100 --root images --classes c.txt", status=2,
          left=nothing_is_written, says=("data.classes c.txt is no file",)),
    Fault("rows-on-images-elsewhere", row_of_images, f"{TABLE5} --data imagenet100 --root other", status=2,
          left=is_as_it_was,
          says=("rows/lewel_m-seed0 holds a run on images in another place (data.root: images -> other); name that",)),
    Fault("report-on-images-elsewhere", row_of_images, f"{TABLE5} --data imagenet100 --root other --report", status=2,
          left=is_as_it_was, says=("another folder by --out",)),
    Fault("rows-on-images-by-a-link", row_of_images, f"{TABLE5} --data imagenet100 --root linked --commands",
          says=("--data-root linked",)),
    Fault("rows-of-other-epochs", row(epochs=4), TABLE5, status=2, left=is_as_it_was,
          says=("rows/lewel_m-seed0 holds a run of another recipe (epochs: 4 -> 12); undo the change, or have",)),
    Fault("report-of-other-epochs", row(epochs=4), f"{TABLE5} --report", status=2, left=is_as_it_was,
          says=("(epochs: 4 -> 12)",)),
    Fault("row-with-a-bad-recipe", with_a_bad_recipe, TABLE5, status=2, left=is_as_it_was,
          says=("cannot read the recipe rows/lewel_m-seed0/config.yaml", "or move it away to have its row trained")),
    Fault("row-that-runs", with_a_lock, TABLE5, status=2, left=is_as_it_was,
          says=("another process is writing to rows/lewel_m-seed0",)),
    Fault("bad-result", with_a_bad_result, f"{TABLE5} --commands", says=("eval linear rows/lewel_m-seed0",)),
    Fault("report-of-nothing", nothing, f"{TABLE5} --report", status=2, left=nothing_is_written,
          says=("there is nothing to report in rows, which is no folder",)),
    Fault("out-is-a-file", lambda folder: (folder / "rows").touch(), TABLE5, status=2,
          says=("the rows would lie in rows, but", "rows is a file; choose another --out")),
    Fault("out-is-in-a-file", lambda folder: (folder / "rows").touch(), "ablate table5 --out rows/a --commands",
          status=2,
          says=("the rows would lie in rows/a, but",)),
    Fault("every-row-fails", images, f"{TABLE5} --data imagenet100 --root images --jobs 2", status=1, slow=True,
          left=has_dashes,
          says=("failed: moco_v2-seed0: lewel: ", "failed: lewel_m-seed0: lewel: ", "wrote rows/table5.md")),
    Fault("runs-of-nowhere", nothing, "runs", status=2,
          says=("runs is no folder with runs: it is not there; name the one that --out of lewel train lay in",)),
    Fault("runs-with-a-bad-result", with_a_bad_result, "runs rows", says=("12/12", "finished")),
    Fault("runs-with-a-bad-recipe", with_a_bad_recipe, "runs .",
          says=("rows/lewel_m-seed0: broken: cannot read the recipe rows/lewel_m-seed0/config.yaml: line 1",)),
)  # fmt: skip
