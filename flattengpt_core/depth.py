"""How many layers a target leaves. Imports no torch."""

from flattengpt_core.errors import InvalidTarget


def layers_to_keep(num_layers: int, *, sparsity: float | None = None, layers: int | None = None) -> int:
    """The number of layers left of `num_layers` for a share to remove, or for a number to keep.

    `sparsity` is the share of LAYERS to remove: `num_layers - round(sparsity * num_layers)`.

    Raises:
        InvalidTarget: both or neither are given, or the target leaves no layer or all of them; names the field.
    """
    if (sparsity is None) == (layers is None):
        raise InvalidTarget(
            "Give exactly one of sparsity (the share of layers to remove) and layers (the number to keep).",
            field="sparsity",
        )
    if layers is not None:
        if not 1 <= layers < num_layers:
            raise InvalidTarget(
                f"layers is {layers}, but the model has {num_layers}: choose 1 to {num_layers - 1}.",
                field="layers",
            )
        return layers
    assert sparsity is not None
    if not 0 < sparsity < 1:
        raise InvalidTarget(f"sparsity is {sparsity}: choose a share between 0 and 1.", field="sparsity")
    kept = num_layers - round(sparsity * num_layers)
    if not 1 <= kept < num_layers:
        raise InvalidTarget(
            f"sparsity {sparsity} leaves {kept} of the model's {num_layers} layers: choose between "
            f"{1 / num_layers:.3f} and {1 - 1 / num_layers:.3f}.",
            field="sparsity",
        )
    return kept
