"""The measurements of a diagnosis against known answers, and its words against made-up numbers."""

from functools import partial

import pytest
import torch

from flattengpt_core.decoder import Decoder, DecoderLayer
from flattengpt_core.diagnostics import (
    Diagnosis,
    PowerLaw,
    fewest_alike,
    jacobian_distance,
    power_law,
    random_directions,
    token_variance,
)
from flattengpt_core.families import DOWN, OUTPUT
from flattengpt_core.models import Checkpoint
from flattengpt_core.reading import reading
from flattengpt_core.similarity import dense_pass, unit_hidden_states, unit_length
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
LENGTH = 3


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("diagnostics") / "tiny", request.param))


def first_layer(source: Checkpoint, *zeroed: str) -> tuple[Decoder, DecoderLayer]:
    """The first layer with these projections zero."""
    decoder = Decoder(source.config, window_length=LENGTH, device=CPU)
    weights = source.layer(0)
    return decoder, decoder.layer(weights | {f"{p}.weight": weights[f"{p}.weight"] * 0 for p in zeroed}, 0)


def hidden_states() -> torch.Tensor:
    return torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("exponent", [2.0, 0.5, -1.0])
def test_a_power_of_the_depth_is_found(exponent: float) -> None:
    found = power_law([3 * depth**exponent for depth in range(1, 25)])
    assert found.exponent == pytest.approx(exponent)
    assert found.r_squared == pytest.approx(1)


def test_r_squared_is_the_share_explained() -> None:
    """log 1, 2, 1, 2 on log 1, 2, 3, 4, by numpy.polyfit: slope 0.3135, and 0.2218 of the variation."""
    found = power_law([1, 2, 1, 2])
    assert (found.exponent, found.r_squared) == (pytest.approx(0.3135, abs=1e-4), pytest.approx(0.2218, abs=1e-4))


def test_a_variance_that_stays_is_the_power_zero() -> None:
    found = power_law([0.1] * 7)
    assert (found.exponent, found.r_squared) == (pytest.approx(0, abs=1e-9), 1)


def test_a_massive_activation_does_not_set_the_variance() -> None:
    hidden = torch.tensor([[[1.0, -1.0]] * 4 + [[1e4, -1e4]]])
    assert token_variance(hidden) == pytest.approx(2)


def test_jacobian_distance_is_what_autograd_gives(source: Checkpoint) -> None:
    decoder, layer = first_layer(source)
    block, at = partial(decoder.block, layer), hidden_states()
    directions = random_directions(3, at, seed=0)
    size = at.numel()
    difference = torch.autograd.functional.jacobian(block, at).reshape(size, size) - torch.eye(size)
    squares = [(difference @ vector.flatten()).square().sum() for vector in directions]
    assert [vector.norm().item() for vector in directions] == pytest.approx([1] * 3)
    assert jacobian_distance(block, at, directions) == pytest.approx(torch.stack(squares).mean().sqrt().item(), 1e-4)

    every_direction = list(torch.eye(size).reshape(size, *at.shape))
    relative_frobenius = difference.norm().item() / size**0.5
    assert jacobian_distance(block, at, every_direction) == pytest.approx(relative_frobenius, rel=1e-4)


def test_the_identity_is_at_no_distance(source: Checkpoint) -> None:
    at = hidden_states()
    decoder, layer = first_layer(source, OUTPUT, DOWN)
    assert jacobian_distance(partial(decoder.block, layer), at, random_directions(2, at, seed=0)) == 0
    decoder, layer = first_layer(source, OUTPUT)
    assert jacobian_distance(partial(decoder.block, layer), at, random_directions(2, at, seed=0)) > 0.1


def test_the_pass_gives_what_the_similarity_reads(source: Checkpoint) -> None:
    folds = [torch.randint(0, 256, (3, LENGTH), generator=torch.Generator().manual_seed(fold)) for fold in range(2)]
    units = unit_hidden_states(source, folds, device=CPU)
    runs = list(dense_pass(source, folds, device=CPU))
    assert len(units) == len(runs) + 1 == 7
    for index, run in enumerate(runs):
        assert torch.equal(unit_length(run.before), units[index])
        assert torch.equal(unit_length(run.after), units[index + 1])


def test_merging_goes_as_far_as_all_groups_are_alike() -> None:
    similarity = two_halves(0.95)
    assert fewest_alike(similarity) == 2
    assert fewest_alike(similarity, ["full", "full", "sliding", "sliding", "sliding", "full"]) == 4
    assert fewest_alike(two_halves(0.9)) == 6
    assert fewest_alike(torch.ones(6, 6)) == 1


def two_halves(alike: float) -> torch.Tensor:
    """Of six layers, the first three read inputs of this cosine, and the last three; the halves are at 0.2."""
    similarity = torch.full((6, 6), 0.2)
    similarity[:3, :3] = similarity[3:, 3:] = alike
    return similarity.fill_diagonal_(1)


def made_up(similarity: torch.Tensor, growth: PowerLaw) -> Diagnosis:
    return Diagnosis(
        states=torch.nn.functional.pad(similarity, (0, 1, 0, 1)),
        divergence=torch.ones(6),
        token_growth=torch.tensor([40.0, 1, 1, 1, 2, 3]),
        variance=torch.arange(1.0, 8.0),
        growth=growth,
        jacobian_distance=torch.tensor([5.0, 0.3, 0.2, 0.1, 0.7, 0.9]),
        block_influence=torch.tensor([0.8, 0.02, 0.04, 0.01, 0.1, 0.3]),
    )


def test_reading_of_a_model_that_can_go_far() -> None:
    found = made_up(two_halves(0.95), PowerLaw(1.5, 0.9))
    assert reading(found, [(0,), (1, 2), (3,), (4,), (5,)], fewest_alike(found.similarity)) == (
        "Of 5 neighbouring pairs of layers, 4 (80%) have inputs with a mean cosine above 0.9, which is where the paper "
        "finds them. Merging the most similar first, every group's first and last layer stay above 0.9 down to 2 of 6 "
        "layers (67% removed). At 5 layers the loosest group is 1 to 2 (counted from 0), with a cosine of 0.950: "
        "every merge stays above 0.9. The hidden states' variance grows like the depth to the power of 1.50 (R² 0.90; "
        "the paper derives 2). Leave alone first the layers that turn their input most, 0, 5 and 4 (block influence "
        "0.80, 0.30 and 0.10), and those whose Jacobian is farthest from the identity, 0, 5 and 4 (distance 5.00, 0.90 "
        "and 0.70; the median layer's is 0.30). None of these would be merged at 5 layers. Layer 0 "
        "makes massive activations (a token grows 40 times as much in it as the median token), which later layers "
        "depend on."
    )


def test_reading_of_a_model_that_cannot() -> None:
    found = made_up(two_halves(0.6), PowerLaw(-0.2, 0.1))
    text = reading(found, [(0, 1, 2), (3,), (4, 5)], fewest_alike(found.similarity))
    for sentence in (
        "Of 5 neighbouring pairs of layers, 0 (0%) have inputs with a mean cosine above 0.9,",
        "No two neighbours that can merge are above 0.9.",
        "At 3 layers the loosest group is 0 to 2 (counted from 0), with a cosine of 0.600: the target goes past 0.9.",
        "The hidden states' variance does not grow with depth: the fitted power of the depth is -0.20 (R² 0.10; the "
        "paper derives 2), but this explains less than half of how it varies.",
        "Of these, 0, 4 and 5 would be merged at 3 layers.",
    ):
        assert sentence in text
    assert "down to" not in text
