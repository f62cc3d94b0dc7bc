"""LaCo (Yang et al., arXiv 2402.11187): collapse the layers above a layer into it while the output stays similar.

A collapse replaces layer l and the m layers after it by one layer:
`theta_l* = theta_l + sum_{k=1..m} (theta_{l+k} - theta_l)`, each difference with the layers as they were before the
collapse. theta are the parameters of attention and MLP; the norms before them stay layer l's. (Subtracting a copy
that already holds the earlier terms would telescope to theta_{l+m} alone.) A pointer goes from the top layers down; a
collapse stands if the mean cosine between the tokens' final hidden states, before and after, is above a threshold,
else the pointer moves down by one.

The paper sets threshold, size and interval by hand for each model and lets the number of layers follow. Here the
number is given, so the interval is fixed and the threshold goes down `THRESHOLDS` until a sweep from the dense model
gets there, with one of the sizes in `COMBINED`; the last collapse takes fewer layers where it would go past the
target. A collapse of one layer (m = 1) puts attention and MLP of layer l + 1 behind the norms of layer l.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flattengpt_core.calibration import subsample
from flattengpt_core.compressed import Compressed
from flattengpt_core.decoder import Decoder
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.families import INPUT_NORM, MLP_NORM
from flattengpt_core.grouping import Group
from flattengpt_core.language_head import FinalNorm
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.similarity import hidden_states, layer_runs

THRESHOLDS = tuple(percent / 100 for percent in range(95, -1, -5))
"""Mean cosines that a collapse must exceed, tried in turn; below 0 the output has nothing of the dense model's left."""

COMBINED = (4, 3, 2)
"""Layers that one collapse makes one of, tried in turn at each threshold, so that the method has the size which suits
the model best by its own measure.

With 2 no weights are added up. The demo model (30 layers to 24) takes 2, at a threshold of 0.7.
"""

INTERVAL = 2
"""How far the pointer goes down after a collapse, so that the next one does not only enlarge the last."""

COMPARED_TOKENS = 1024
"""Tokens the similarity is averaged over; the paper takes a few sentences."""

_NORMS = tuple(f"{norm}.weight" for norm in (INPUT_NORM, MLP_NORM))


@dataclass(frozen=True)
class Run:
    """Attention and MLP of a layer as a sum of neighbouring source layers: `sum_k coefficients[k] * theta_{first + k}`.

    A collapse is linear, so this holds for collapses of collapsed layers too, and no weights wait in memory.
    """

    first: int
    coefficients: tuple[int, ...]

    @property
    def members(self) -> Group:
        """The source layers, also those that cancelled out."""
        return tuple(range(self.first, self.first + len(self.coefficients)))


Model = tuple[Run, ...]
"""The layers of a partly collapsed model, from the first to the last."""


def collapsed(runs: Sequence[Run]) -> Run:
    """The first of neighbouring runs with the others collapsed into it: their sum less (m - 1) times the first."""
    lowest, *above = runs
    own = [(1 - len(above)) * coefficient for coefficient in lowest.coefficients]
    return Run(lowest.first, (*own, *(coefficient for run in above for coefficient in run.coefficients)))


def weights(source: Checkpoint, run: Run) -> dict[str, Tensor]:
    """The tensors of a run: what is taken from one source layer as it is stored, sums in float32."""
    lowest = source.layer(run.first)
    if len(run.members) == 1:
        return lowest
    norms = {name: lowest[name] for name in _NORMS}
    terms = [(index, factor) for index, factor in zip(run.members, run.coefficients, strict=True) if factor]
    if [factor for _, factor in terms] == [1]:
        return source.layer(terms[0][0]) | norms
    total: dict[str, Tensor] = {}
    for index, factor in terms:
        for name, tensor in source.layer(index).items():
            scaled = factor * tensor.float()
            total[name] = total[name] + scaled if name in total else scaled
    return total | norms


def sweep(
    num_layers: int,
    layers: int,
    threshold: float,
    similarity: Callable[[Model], float],
    *,
    combined: int,
    kind: Callable[[int], str],
    on_pointer: Callable[[int], object] = lambda at: None,
) -> Model:
    """Collapse from the top down where the result stays more similar than `threshold`, at most to `layers` layers.

    Args:
        similarity: of a model to the dense one.
        combined: layers that one collapse makes one of.
        kind: of a source layer; layers of different kinds never collapse into one another.
        on_pointer: told of each position before it is tried; may raise to stop.
    """
    model = tuple(Run(index, (1,)) for index in range(num_layers))
    at = max(0, num_layers - combined)
    while at >= 0 and len(model) > layers:
        on_pointer(at)
        alike = _alike(model[at : at + combined], kind)
        end = at + min(alike, 1 + len(model) - layers)
        candidate = (*model[:at], collapsed(model[at:end]), *model[end:])
        if end > at + 1 and similarity(candidate) > threshold:
            model = candidate
            at = min(at - INTERVAL, max(0, len(model) - combined))
        else:
            at -= 1
    return model


class OutputSimilarity:
    """Mean cosine between the final hidden states of partly collapsed models and the dense one, token by token.

    A model costs its lowest collapsed layer and those above it: below, its hidden states are the dense model's,
    which are kept, (windows, length, width) for each layer. A model met again costs nothing, so that sweeps which
    begin alike (all do) share their work; at worst a sweep costs L² / 2 evaluations of a layer. Layers are read
    anew each time: the system's page cache holds what fits, and the process no more than one sum.
    """

    def __init__(
        self, source: Checkpoint, tokens: Tensor, *, device: torch.device, on_layer: Callable[[], object]
    ) -> None:
        self._source = source
        self._decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
        self._norm = FinalNorm(source, device=device)
        self._known: dict[Model, float] = {}
        self._on_layer = on_layer
        *self._states, last = self._told(hidden_states(layer_runs(source, self._decoder, tokens)))
        self._dense = self._norm(last)

    def __call__(self, model: Model) -> float:
        """The similarity of `model`, which has a collapsed layer."""
        if model not in self._known:
            lowest = next(at for at, run in enumerate(model) if len(run.members) > 1)
            hidden = self._states[lowest]
            for run in model[lowest:]:
                hidden = self._decoder.run(weights(self._source, run), run.first, hidden)
                self._on_layer()
            cosines = torch.nn.functional.cosine_similarity(self._norm(hidden), self._dense, dim=-1)
            self._known[model] = cosines.mean().item()
        return self._known[model]

    def kind(self, index: int) -> str:
        """What attention source layer `index` uses."""
        return self._decoder.kind(index)

    def _told(self, states: Iterable[Tensor]) -> Iterable[Tensor]:
        for state in states:
            self._on_layer()
            yield state


@torch.inference_mode()
def compress(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """Collapse to exactly `layers` layers with the highest threshold that allows it; see `compress.Compressor`.

    Of the sizes that allow it at this threshold, the greatest is taken. Progress counts the positions of the pointer,
    in the sweeps of all thresholds and sizes.

    Raises:
        InvalidTarget: no threshold leads to so few layers.
    """
    num_layers = source.info.num_layers
    before = done = 0
    tries = [(threshold, combined) for threshold in THRESHOLDS for combined in COMBINED]
    total = num_layers * len(tries)

    def tell() -> None:
        progress.step(done, total)

    def move(at: int) -> None:
        nonlocal done
        done = before + num_layers - 1 - at
        tell()

    similarity = OutputSimilarity(source, subsample(folds, COMPARED_TOKENS), device=device, on_layer=tell)
    fewest = num_layers
    for position, (threshold, combined) in enumerate(tries):
        before = position * num_layers
        model = sweep(
            num_layers, layers, threshold, similarity, combined=combined, kind=similarity.kind, on_pointer=move
        )
        fewest = min(fewest, len(model))
        if len(model) == layers:
            break
    else:
        raise InvalidTarget(
            f"{layers} layers cannot be reached: LaCo comes down to {fewest} before layers of different kinds would "
            "have to merge or the output has nothing in common with the dense model's.",
            field="layers",
        )
    for run in model:
        writer.add_layer(weights(source, run), first_member=run.first)
    progress.step(total, total)
    return Compressed([run.members for run in model], [])


def _alike(runs: Sequence[Run], kind: Callable[[int], str]) -> int:
    """How many of the runs, from the first on, are of the first one's kind."""
    count = 1
    while count < len(runs) and kind(runs[count].first) == kind(runs[0].first):
        count += 1
    return count
