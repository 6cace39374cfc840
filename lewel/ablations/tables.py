"""The rows of the paper's Tables 5, 6, 7 and Fig. 3: what it shows, its numbers, and the settings that make them.

Numbers of maps and widths are multiples of those of the data set's own recipe, as the paper's are of its K: 128 with
MoCo v2 and LEWEL_M, 256 with BYOL and LEWEL_B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lewel.errors import LewelError
from lewel.recipe import plain, presets

Method = Literal["moco_v2", "lewel_m", "byol", "lewel_b"]
METHODS: tuple[Method, ...] = ("moco_v2", "lewel_m", "byol", "lewel_b")
TITLES = {
    "table5": "Table 5: the two losses and the coupled head",
    "table6": "Table 6: MoCo v2 with larger and with extra projection heads",
    "table7": "Table 7: number of aligned embeddings",
    "fig3a": "Fig. 3a: weight of the aligned loss",
    "fig3b": "Fig. 3b: width of the aligned embeddings",
}
GROUPS = {"fig3": ("fig3a", "fig3b"), "all": tuple(TITLES)}


def _bases() -> dict[str, dict[Method, str]]:
    """The presets by data set and method, of every data set that has all four: "cifar10", "cifar10_200" ..."""
    bases = {}
    for name in presets.PRESETS:
        part, _, method = name.partition("/")
        if method.startswith("moco_v2"):
            ending = method.removeprefix("moco_v2")
            named: dict[Method, str] = {each: f"{part}/{each}{ending}" for each in METHODS}
            if all(preset in presets.PRESETS for preset in named.values()):
                bases[part + ending] = named
    return bases


BASES = _bases()


@dataclass(frozen=True)
class Row:
    """A line of a table, or a point of a picture."""

    name: str
    """of its runs: the same in every table that has this row"""
    method: Method
    """whose preset it begins with"""
    cells: tuple[str, ...]
    """what the paper's columns say of it"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """what it has otherwise than the preset, by dotted names"""
    accuracy: float | None = None
    """the paper's linear accuracy on ImageNet-100, percent; None where it is only drawn"""
    miou: float | None = None
    """the paper's mIoU of semantic segmentation on VOC, percent"""
    x: float | None = None
    """its place in a picture"""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one of its pictures."""

    name: str
    columns: tuple[str, ...]
    """headings of the rows' cells"""
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def pictured(self) -> bool:
        return self.name.startswith("fig")


def chosen(name: str) -> tuple[str, ...]:
    """The tables that a name stands for. Raises LewelError where there is none of that name."""
    if name in TITLES or name in GROUPS:
        return GROUPS.get(name, (name,))
    raise LewelError(f"there is no table {name!r} to ablate; there are {', '.join((*TITLES, *GROUPS))}")


def made(name: str, k: int, k_byol: int) -> Table:
    """A table for recipes with k maps in lewel_m and k_byol in lewel_b."""
    return {"table5": _table5, "table6": _table6, "fig3a": _fig3a, "fig3b": _fig3b}[name](k) if name != "table7" else (
        _table7(k_byol)
    )  # fmt: skip


def compared(data: str) -> dict[str, str]:
    """The settings that rows of any table, or the presets they begin with, do not have alike; each with who has what.

    Without the number of maps, which the rows of every table are multiples of.
    """
    start = {name: dict(plain.flat(plain.to_plain(presets.get(name)))) for name in BASES[data].values()}
    found = {}
    for setting in next(iter(start.values())):
        read = (name for name, recipe in start.items() if setting not in INFONCE or recipe["method.loss"] == "infonce")
        values = {name: start[name][setting] for name in read}
        if len({str(value) for value in values.values()}) > 1:
            found[setting] = ", ".join(f"{name} has {value}" for name, value in values.items())
    for name in TITLES:
        for row in made(name, K, K).rows:
            found |= {setting: f"{TITLES[name]} has rows with values of their own" for setting in row.settings}
    return {setting: who for setting, who in found.items() if setting not in (MAPS, "preset")}


YES, NO = "✓", ""
W = "method.w_aligned"
K = 128  # of MoCo v2 and LEWEL_M in the paper
INFONCE = ("method.queue", "method.split_bn", "method.temperature")  # settings that presets of no other loss read
MAPS, GROUPED = "heads.num_maps", "heads.num_groups"


def _moco(*cells: str, x: float | None = None) -> Row:
    return Row("moco_v2", "moco_v2", cells, {}, 79.5, 61.6, x)


def _lewel(*cells: str, x: float | None = None) -> Row:
    return Row("lewel_m", "lewel_m", cells, {}, 82.1, 63.4, x)


def _aligned(*cells: str, x: float | None = None) -> Row:
    return Row("aligned_only", "lewel_m", cells, {W: 1.0}, 80.0, 62.6, x)


def _table5(k: int) -> Table:
    rows = (
        _moco(YES, NO, NO),
        _aligned(NO, YES, NO),
        Row("separate_head", "lewel_m", (YES, YES, NO), {"heads.coupling": "separate"}, 81.0, 62.7),
        _lewel(YES, YES, YES),
    )
    return Table("table5", ("Global", "Align.", "Coupled head"), rows)


def _table6(k: int) -> Table:
    """MoCo v2's extra head: uniform maps in as many groups as maps make one aligned vector an image, which is GAP."""
    one, two, four = _multiples("K", k, 1, 2, 4)
    moco, lewel = "MoCo v2", "LEWEL_M"
    extra = {"heads.maps": "uniform", GROUPED: k}
    rows = (
        _moco(moco, NO, one),
        Row(f"moco_v2-k{2 * k}", "moco_v2", (moco, NO, two), {MAPS: 2 * k}, 79.8, 60.6),
        Row(f"moco_v2-k{4 * k}", "moco_v2", (moco, NO, four), {MAPS: 4 * k}, 80.2, 61.5),
        Row("extra_head", "lewel_m", (moco, YES, one), extra, 79.9, 62.2),
        Row("shared_projector", "lewel_m", (lewel, NO, one), {"heads.semantic_projector": "shared"}, 81.8, 63.0),
        Row("random_maps", "lewel_m", (f"{lewel} w/ rand.", YES, one), {"heads.maps": "random"}, 79.8, 61.9),
        _lewel(lewel, YES, one),
    )
    return Table("table6", ("Method", "Extra head", "Dim."), rows)


def _table7(k: int) -> Table:
    published = (
        (2, 4, 84.6, 62.6),
        (1, 1, 81.0, 63.2), (1, 2, 82.6, 63.3), (1, 4, 83.3, 63.4), (1, 8, 83.1, 62.1), (1, 16, 82.9, 61.4),
        (1 / 2, 4, 83.8, 60.9),
        (1 / 4, 4, 84.8, 61.8),
    )  # fmt: skip
    rows = [Row("byol", "byol", ("BYOL", *_multiples("K", k, 1), "N/A"), {}, 81.4, 59.7)]
    for times, groups, accuracy, miou in published:
        maps = _share(k, times)
        cells = ("LEWEL_B", *_multiples("K", k, times), str(groups))
        rows.append(Row(f"lewel_b-k{maps}-g{groups}", "lewel_b", cells, {MAPS: maps, GROUPED: groups}, accuracy, miou))
    return Table("table7", ("Method", "K", "G"), tuple(rows))


def _fig3a(k: int) -> Table:
    between = [
        Row(f"w{w}", "lewel_m", (f"{w}",), {W: w}, x=w) if w != 0.5 else _lewel("0.5", x=0.5)
        for w in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    return Table("fig3a", ("Weight of the aligned loss",), (_moco("0", x=0.0), *between, _aligned("1", x=1.0)))


def _fig3b(k: int) -> Table:
    rows = [
        Row(f"width{width}", "lewel_m", cells, {"heads.aligned_width": width}, x=width)
        if width != k
        else _lewel(*cells, x=width)
        for times in (1 / 4, 1 / 2, 1, 2, 4)
        for width, cells in [(_share(k, times), _multiples("K", k, times))]
    ]
    return Table("fig3b", ("Width of the aligned embeddings",), tuple(rows))


def _multiples(name: str, k: int, *times: float) -> tuple[str, ...]:
    """K's multiples as they are read: "K/4 = 16", "K = 64", "2K = 128"."""
    return tuple(
        f"{f'{each:g}' if each > 1 else ''}{name}{f'/{1 / each:g}' if each < 1 else ''} = {_share(k, each)}"
        for each in times
    )


def _share(k: int, times: float) -> int:
    """times k. Raises LewelError where that is no whole number."""
    if times * k % 1:
        raise LewelError(
            f"{MAPS} must be a multiple of {1 / times:g}, for the table has rows with K/{1 / times:g} of them, got {k}"
        )
    return int(times * k)
