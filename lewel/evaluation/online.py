"""What a run says of its features before training and after an epoch."""

from __future__ import annotations

from lewel import data, distributed, ranges
from lewel.errors import DataError
from lewel.evaluation import features, health, knn
from lewel.run.session import Session
from lewel.watching.log import RunLog, read

PICTURED = 256  # test images of all classes, over which the statistics of the maps are taken


@ranges.ranged(ranges.EVALUATE)
def log_baselines(session: Session, log: RunLog) -> None:
    """Logs kNN of raw pixels, and kNN and RankMe of the network as it begins."""
    pixels = features.knn_of_pixels(session, log.progress)
    untrained, rankme, _ = features.measured(session, log.progress)
    values = {knn.key("knn_pixels", k): accuracy for k, accuracy in pixels.items()}
    values |= {knn.key("knn_untrained", k): accuracy for k, accuracy in untrained.items()}
    values["rankme_untrained"] = rankme
    network = "by the initial weights" if session.run.init else "untrained"
    said = ", ".join(f"kNN-{k} {untrained[k]:.1f} % {network}, {pixels[k]:.1f} % on raw pixels" for k in pixels)
    said += f", RankMe {rankme:.1f} {network}"
    log.record("baselines", {"step": 0, **values}, f"before training: {said}")


@ranges.ranged(ranges.EVALUATE)
def log_epoch(session: Session, log: RunLog) -> None:
    """Logs kNN, probe and RankMe where the recipe has kNN, and the statistics of the maps where there are any."""
    values = {"step": session.steps_done, "epoch": session.epochs_done, "seconds": session.seconds}
    line = f"epoch {session.epochs_done}/{session.run.epochs}  {session.seconds:.0f} s"
    if session.run.knn_every:
        accuracies, rankme, probe = features.measured(session, log.progress)
        values |= {knn.key("knn", k): accuracy for k, accuracy in accuracies.items()}
        line += "".join(f"  kNN-{k} {accuracy:.1f} %" for k, accuracy in accuracies.items())
        if probe is not None:
            values["probe"] = probe
            line += f"  probe {probe:.1f} %"
        values["rankme"] = rankme
        line += f"  RankMe {rankme:.1f}"
    if session.run.method.aligned and session.world.leads:
        try:
            pictured, _ = session.sets.test[data.spaced(session.sets.test, PICTURED)]
        except DataError as error:  # kNN, if it is on, ended the run; without it nothing depends on these images
            line += f"  no statistics of the maps: {error}"
        else:
            values |= health.map_statistics(session.method, session.to_device(pictured))
            line += f"  maps: entropy {values['map_entropy']:.3f}, |R-GAP|/|GAP| {values['map_spread']:.3f}"
    log.record("epoch", values, line)


def is_evaluated(session: Session) -> bool:
    """Whether the log already has the evaluation after the last whole epoch, as of a run that is continued."""
    file = session.folder / "log.jsonl"

    def told() -> bool:
        records = read(file) if file.exists() else []
        return any(record["kind"] == "epoch" and record["step"] == session.steps_done for record in records)

    return distributed.from_leader(told)
