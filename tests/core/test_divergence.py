"""What the predictions lose without a layer, against the same by hand on the whole model."""

from pathlib import Path

import pytest
import torch

from flattengpt_core.divergence import JUDGED_STEP, RIDGE, divergence
from flattengpt_core.models import Checkpoint, load_model
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
LENGTH = 16


def by_hand(folder: Path, windows: torch.Tensor, judged: list[int], left_out: int) -> float:
    """Leave a layer out of the library's own model: a hook adds a least-squares map in place of its outputs."""
    model = load_model(folder, device=CPU, dtype=torch.float32)
    layers, fitted = model.model.layers, [i for i in range(len(windows)) if i not in judged]
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, given, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    gone = layers[left_out]
    before = {"hidden": model.model.embed_tokens}
    if left_out:
        layer = layers[left_out - 1]
        before = {"attention": layer.self_attn, "mlp": layer.mlp, "hidden": layer}
    hooks = [module.register_forward_hook(keep(name)) for name, module in {**before, "after": gone}.items()]
    with torch.inference_mode():
        expected = model(input_ids=windows).logits[judged].log_softmax(-1)
        read = torch.cat([seen["attention"], seen["mlp"]] if left_out else [seen["hidden"]], -1).double()
        wanted, hidden = (seen["after"] - seen["hidden"]).double(), seen["hidden"].double()
        for hook in hooks:
            hook.remove()
        scale = 1 / hidden[fitted].flatten(0, 1).norm(dim=-1, keepdim=True)
        rows, targets = read[fitted].flatten(0, 1) * scale, wanted[fitted].flatten(0, 1) * scale
        ridge = RIDGE * rows.square().sum() / rows.shape[1]
        augmented = torch.cat([rows, ridge.sqrt() * torch.eye(rows.shape[1], dtype=torch.float64)])
        right = torch.cat([targets, torch.zeros(rows.shape[1], targets.shape[1], dtype=torch.float64)])
        linear = torch.linalg.lstsq(augmented, right).solution
        replaced = (hidden + read @ linear).float()
        gone.register_forward_hook(lambda module, given, output: replaced)
        found = model(input_ids=windows).logits[judged].log_softmax(-1)
    distance = (expected.exp() * (expected - found)).sum(-1)
    return float(distance.flatten()[::JUDGED_STEP].mean())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_each_layer_left_out_alone(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path / "dense", family)
    windows = torch.randint(0, 256, (8, LENGTH), generator=torch.Generator().manual_seed(1))
    found = divergence(Checkpoint(folder), [windows[:4], windows[4:]], device=CPU)
    judged = [0, 2, 5, 7]  # evenly spread: linspace(0, 7, 4), rounded
    for layer in (0, 1, 3, 5):
        assert found[layer] == pytest.approx(by_hand(folder, windows, judged, layer), rel=1e-3)
