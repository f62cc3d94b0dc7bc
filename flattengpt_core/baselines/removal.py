"""The last step of every method that only removes layers: what stays is copied as it is."""

from collections.abc import Sequence

from flattengpt_core.compressed import Compressed
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress


def keep_layers(source: Checkpoint, kept: Sequence[int], writer: CheckpointWriter, progress: Progress) -> Compressed:
    """Hand the source's layers `kept` (ascending) to `writer`, bit for bit, one step a layer."""
    for position, index in enumerate(kept):
        writer.add_layer(source.layer(index), first_member=index)
        progress.step(position + 1, len(kept))
    return Compressed([(index,) for index in kept], [])
