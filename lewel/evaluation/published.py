"""The value that was published for a recipe, to stand beside a result; from what the presets know."""

from __future__ import annotations

from lewel.recipe import plain, presets
from lewel.recipe.free import FREE_TO_CHANGE
from lewel.recipe.presets import Preset
from lewel.recipe.schema import Train

OWN = "own"  # the protocol of other settings than a published one has
SIMCLR = "simclr"  # the protocol of "semi-1" and "semi-10": SimCLR's list and the paper's settings
METHODS = {"moco_v2": "MoCo v2", "byol": "BYOL", "simsiam": "SimSiam"}
NAMED = 3  # differences that a sentence quotes


def line(
    run: Train, kind: str, protocol: str, *, images: int | None = None, epoch: int | None = None, trained: bool = False
) -> str:
    """What was published for run, with the value where recipe, epochs and protocol are those it was measured with.

    Args:
        run: the recipe; where its images are, what is logged and the seed may be anything.
        kind: "linear" (or "linear-a"), "semi-1" or "semi-10".
        protocol: of linear evaluation "a", "b", "moco" or "cached", and of semi SIMCLR; or anything else, such as OWN,
            where the list or the settings are others.
        images: how many training images there are; None if not known.
        epoch: of the checkpoint; None if not known, or not of a run.
        trained: whether it is a checkpoint of run. Nothing was published for what began with the weights of run.init,
            nor for those weights themselves, but for the authors' own.
    """
    if run.init and (trained or not run.init.startswith("official:")):
        begun = f"began with {run.init}" if trained else f"are of {run.init}"
        return f"no published value for these weights: they {begun}, and are not of this recipe alone"
    kind = "linear" if kind.startswith("linear") else kind
    alike = {name: preset for name, preset in presets.PRESETS.items()
             if _known(preset, kind) and not _differences(preset, run)}  # fmt: skip
    if not alike:
        return "no published value for this recipe" + _why_none(run, kind)
    preset = next(iter(alike.values()))
    if images is not None and images != preset.images:
        return (
            f"no published value for these {images:,} training images: {_who(run)} was evaluated on {preset.images:,}"
        )
    exact = next((preset for preset in alike.values() if preset.run.epochs == run.epochs), None)
    if exact is None:
        others = {each.run.epochs: "{} by {}".format(*_said(each, kind)) for each in alike.values()}
        known = ", ".join(f"{value} after {epochs} epochs" for epochs, value in others.items())
        return f"no published value for {run.epochs} epochs; {_who(run)} has {known}"
    value, by = _said(exact, kind)
    if epoch is not None and epoch != run.epochs:
        return f"no published value for {epoch} of {run.epochs} epochs; {_who(run)} has {value} by {by} after all"
    if protocol != _known(exact, kind)[1]:  # type: ignore[index]
        what = "for these settings" if protocol == OWN else "by this protocol"
        return f"no published value {what}; {_who(run)}, {run.epochs} epochs, has {value} by {by}"
    return f"published: {_who(run)}, {run.epochs} epochs, {by}: {value}"


def _known(preset: Preset, kind: str) -> tuple[float, str] | None:
    """The value that is known of a preset in percent, and the protocol it was measured by."""
    if kind == "linear":
        return None if preset.linear is None else (preset.linear, preset.linear_by)
    places = {"semi-1": 0, "semi-10": 1}
    return None if preset.semi is None or kind not in places else (preset.semi[places[kind]], SIMCLR)


def _said(preset: Preset, kind: str) -> tuple[float, str]:
    """As _known, the protocol in words."""
    found = _known(preset, kind)
    assert found is not None
    value, protocol = found
    share = kind.removeprefix("semi-")
    return value, f"SimCLR's {share} % list" if protocol == SIMCLR else f"protocol {protocol}"


def _differences(preset: Preset, run: Train) -> list[str]:
    """What of the recipe is not the preset's. The classes of ImageNet-100 are a file of the user's."""
    own_classes = ("data.classes",) if preset.run.preset.startswith("imagenet100/") else ()
    return plain.differences(preset.run, run, ignore=(*FREE_TO_CHANGE, "seed", *own_classes))


def _why_none(run: Train, kind: str) -> str:
    """How the recipe differs from the preset it began with, if that has a value."""
    preset = presets.PRESETS.get(run.preset)
    if preset is None or not _known(preset, kind):
        return ""
    differ = _differences(preset, run)
    more = f" and {len(differ) - NAMED} more" if len(differ) > NAMED else ""
    return f", which differs from {run.preset} ({'; '.join(differ[:NAMED])}{more})"


def _who(run: Train) -> str:
    """The method's name in tables: LEWEL_B."""
    name = run.method.name
    return METHODS.get(name, name.upper())
