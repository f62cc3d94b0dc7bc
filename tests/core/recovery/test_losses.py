"""The losses against their formulas, written out."""

import math

import torch
from torch import Tensor

from flattengpt_core.recovery.losses import IGNORED, divergence, hidden_error, next_token_loss, successors
from flattengpt_core.recovery.objectives import matched_states

LABELS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, IGNORED, IGNORED]])
FOLLOWING, COUNTED = successors(LABELS)


def logits(seed: int) -> Tensor:
    return torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_a_token_counts_if_what_follows_is_known() -> None:
    assert COUNTED.tolist() == [[True, True, True, True, False], [True, True, False, False, False]]
    assert FOLLOWING[COUNTED].tolist() == [1, 4, 1, 5, 2, 6]


def test_the_next_tokens_loss_is_the_negative_log_likelihood() -> None:
    found = logits(0)
    expected = -sum(
        found[row, place].log_softmax(-1)[FOLLOWING[row, place]].item() for row, place in COUNTED.nonzero().tolist()
    )
    assert math.isclose(next_token_loss(found, FOLLOWING, COUNTED).item(), expected, rel_tol=1e-5)


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    student, teacher = logits(1), logits(2).detach()
    p, q = ((each[COUNTED] / 2).softmax(-1) for each in (teacher, student))
    expected = 4 * (p * (p / q).log()).sum()
    loss = divergence(student, teacher, COUNTED, temperature=2.0)
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    gradient = torch.zeros_like(student)
    gradient[COUNTED] = (2 * (q - p)).detach()
    assert student.grad is not None
    assert torch.allclose(student.grad, gradient, atol=1e-6)
    assert divergence(teacher, teacher, COUNTED, temperature=1.0).item() == 0


def test_the_hidden_error_weighs_all_tokens_alike() -> None:
    student, teacher = logits(3).detach(), logits(4).detach()
    expected = sum(
        ((student[row, place] - teacher[row, place]).norm() / teacher[row, place].norm()).item() ** 2
        for row, place in COUNTED.nonzero().tolist()
    )
    teacher_with_giant, student_with_giant = teacher.clone(), student.clone()
    teacher_with_giant[0, 0] *= 1000
    student_with_giant[0, 0] *= 1000
    for pair in ((student, teacher), (student_with_giant, teacher_with_giant)):
        assert math.isclose(hidden_error(*pair, COUNTED).item(), expected, rel_tol=1e-5)


def test_padding_has_no_part_in_value_or_gradient() -> None:
    student, teacher = logits(5), logits(6).detach()
    for loss in (
        next_token_loss(student, FOLLOWING, COUNTED),
        divergence(student, teacher, COUNTED, temperature=1.0),
        hidden_error(student, teacher, COUNTED),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert not gradient[~COUNTED].any()
        assert gradient[COUNTED].any(-1).all()


def test_hidden_states_are_matched_after_what_was_merged_or_removed() -> None:
    assert matched_states([(0,), (1, 2), (3,), (4, 5, 6)], 7) == [(2, 3), (4, 7)]
    assert matched_states([(0,), (3,), (4,)], 6) == [(1, 3), (3, 6)]
