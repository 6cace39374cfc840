"""A method as one module: the networks, and the objective that their recipe names; called with two views."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lewel import ranges
from lewel.errors import LewelError
from lewel.methods import encoders, split_linear
from lewel.methods.heads import MLP, AlignedHead, aligned_head, gap
from lewel.methods.objectives import OBJECTIVES
from lewel.methods.objectives.base import Embedding, Terms
from lewel.recipe import objectives, schema
from lewel.recipe.feature_maps import CUSTOM


class Pass(NamedTuple):
    """What Method returns for one pass: loss, 0-dim, is to be differentiated; parts are its unweighted terms."""

    loss: Tensor
    parts: dict[str, Tensor]
    z: Tensor  # (N, K) online global embeddings of the first view
    keys: Tensor | None  # infonce: (size N, K) of all processes, what is enqueued afterwards
    features: Tensor | None = None  # where asked for and there are any: (N, C), the online encoder's of the first view
    shown: Tensor | None = None  # (N,) bool, of which images these are the features; None for all


class Network(nn.Module):
    """Encoder, projector of the global embedding and, with the aligned branch, the semantic projector g_s."""

    def __init__(self, run: schema.Train, encoder: nn.Module | None = None) -> None:
        super().__init__()
        heads = run.heads
        self.encoder = encoder_of(run, encoder)
        width = self.encoder.channels
        self.head: nn.Module
        if run.method.aligned:
            if width % heads.num_groups:
                raise LewelError(
                    f"heads.num_groups must divide the {width} channels of {run.encoder.name}, got {heads.num_groups}"
                )
            self.head = aligned_head(width, heads, run.backend)
            if heads.semantic_projector == "separate":
                self.aligned_head = MLP(width, heads.hidden, heads.aligned_out)
        else:
            make = objectives.projector(heads.projector, run.method.loss)
            self.head = make(width, heads.hidden, heads.num_maps)
        self._seen: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, images: Tensor) -> Embedding:
        """images (N, 3, H, W) -> their Embedding; its aligned part is empty (L = 0) without the aligned branch."""
        with record_function(ranges.ENCODER):
            features = self.encoder(images)
        if self._seen is not None:
            self._seen.append((images, averaged(features)))
        with record_function(ranges.HEAD):
            if not isinstance(self.head, AlignedHead):
                z = self.head(gap(features))
                return Embedding(z, z.new_empty(len(z), 0, z.shape[1]))
            z, pooled = self.head(features)
            return Embedding(z, split_linear.chain(getattr(self, "aligned_head", self.head.mlp), pooled))

    @contextlib.contextmanager
    def seen(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """A context that lists what forward is given, and the averaged features that the encoder makes of it."""
        seen: list[tuple[Tensor, Tensor]] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None


def _begins(images: Tensor, first: Tensor) -> bool:
    """Whether a batch (M, 3, H, W) can have the images of first (N, 3, H, W) as its first rows."""
    alike = isinstance(images, Tensor) and (images.shape[1:], images.device) == (first.shape[1:], first.device)
    return alike and len(images) >= len(first)


def _equal(images: Tensor, first: Tensor) -> Tensor:
    """(N,) bool: which of the first rows of images are bit by bit those of first."""
    return (images.detach()[: len(first)] == first).flatten(1).all(1)


def averaged(features: Tensor) -> Tensor:
    """A map (N, C, h, w) -> its mean over positions (N, C), detached, in at least float32."""
    return features.detach().mean((2, 3), dtype=torch.promote_types(features.dtype, torch.float32))


class Method(nn.Module):
    """Online network, momentum network or None, and objective of a recipe.

    encoder replaces the one that run.encoder names: any module that makes a feature map (N, C, h, w) of images
    (N, 3, H, W); a pass over one image finds C. It is trained in place.

    Raises:
        LewelError: there is no such objective; the encoder makes no map, or its channels are not divided by
            heads.num_groups; the recipe's encoder came from Python, and encoder is None.
    """

    target: Network | None

    def __init__(self, run: schema.Train, encoder: nn.Module | None = None) -> None:
        super().__init__()
        objectives.find(run.method.loss)
        kind = OBJECTIVES[run.method.loss]
        self.settings = run.method
        self.precision = run.precision
        self.seed = run.seed
        self.online = Network(run, encoder)
        self.target = _copied(self.online).requires_grad_(False) if kind.has_target else None
        self.objective = kind(run)
        self._joint: int | None = None  # which of a pass's calls of online has a batch that begins with the first view
        self.train()

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.settings.target == "eman" and self.target is not None:
            self.target.eval()
        return self

    def forward(
        self, first: Tensor, second: Tensor, momentum: float | None, draw: int = 0, *, features: bool = False
    ) -> Pass:
        """Two views (N, 3, H, W) of the same images -> this pass's losses; call finish after the optimizer.

        momentum: m of this step, None in all but the first pass of a step that accumulates gradients. draw: number of
        the pass, the same in all processes, which fixes how ShuffleBN shuffles. features: whether Pass has them, where
        the objective calls online with first itself, or with a batch whose first rows equal it bit by bit; this takes
        no second forward.
        """
        with self.autocast(), self.online.seen() if features else contextlib.nullcontext() as seen:
            terms: Terms = self.objective(self.online, self.target, first, second, momentum, (self.seed, draw))
        found = (None, None) if seen is None else self._of_first(first, seen)
        return Pass(self._weigh(terms.parts), *terms, *found)

    def _of_first(
        self, first: Tensor, seen: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None] | tuple[None, None]:
        """The features of the first view, and for which rows they are; no features where no call has shown it.

        A batch that begins with the first view is looked for once, and waits for the device then. Later passes compare
        it on the device, row by row: an objective that begins to shuffle gives no image the label of another.
        """
        for images, features in seen:
            if images is first:
                return features, None
        if self._joint is None:
            calls = (number for number, (images, _) in enumerate(seen) if _begins(images, first))
            self._joint = next((number for number in calls if bool(_equal(seen[number][0], first).all())), None)
        if self._joint is None or self._joint >= len(seen) or not _begins(seen[self._joint][0], first):
            return None, None
        images, features = seen[self._joint]
        return features[: len(first)], _equal(images, first)

    def finish(self, keys: Tensor | None, momentum: float) -> None:
        """To be called after the optimizer's step: its keys enter the queue (infonce), or the target follows (byol).

        keys are Pass.keys, those of all passes of the step one after the other, or None if they have none.
        """
        self.objective.finish(self.online, self.target, keys, momentum)

    def autocast(self) -> contextlib.AbstractContextManager[None] | torch.autocast:
        """The context that forward runs the networks in; precision "ambient" leaves the caller's autocast on."""
        return autocast(self.precision, next(self.parameters()).device)

    def _weigh(self, parts: dict[str, Tensor]) -> Tensor:
        weight = self.settings.w_aligned
        return (1 - weight) * parts["global"] + (weight * parts["aligned"] if weight else 0)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None] | torch.autocast:
    """The context of a recipe's precision on device, which is not "auto"; "ambient" changes nothing."""
    if precision == "ambient":
        return contextlib.nullcontext()
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def _copied(online: Network) -> Network:
    try:
        return copy.deepcopy(online)
    except Exception as error:  # whatever a module of somebody's own holds
        model = getattr(online.encoder, "model", online.encoder)
        reason = (str(error).splitlines() or [""])[0]
        raise LewelError(
            f"the momentum network is a copy, and copy.deepcopy cannot copy {type(model).__name__} ({reason}); leave "
            "out what cannot be copied (for weight_norm take that of torch.nn.utils.parametrizations), or choose "
            "method.loss simsiam, which has no such network"
        ) from error


def encoder_of(run: schema.Train, given: nn.Module | None) -> encoders.Encoder:
    """The encoder that the recipe names, or the module given in Python, wrapped unless it is an encoder already."""
    if given is None:
        if run.encoder.name == CUSTOM:
            raise LewelError(
                "the encoder of this run came from Python (encoder.name custom) and is in no file; "
                "give one of the same kind again: lewel.train(encoder=...), or Method(run, encoder) for its weights"
            )
        return encoders.build(run.encoder, run.data.image_size)
    if isinstance(given, encoders.Encoder):
        return given
    encoder = encoders.wrap(given, run.data.image_size)
    if run.method.aligned and encoder.side < 2:
        raise LewelError(
            f"at data.image_size {run.data.image_size} the feature map of {type(given).__name__} is one position, over "
            "which alignment maps mean nothing; choose larger images or an encoder of less stride, or w_aligned 0"
        )
    return encoder
