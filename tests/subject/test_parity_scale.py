"""By what a difference between hooked and plain runs is measured: 1, the root mean square, or the
value itself."""

from __future__ import annotations

import pytest
import torch

from interp.subject.parity import TOLERANCE, _difference

BOUND = TOLERANCE[torch.float32]


@pytest.fixture
def stream() -> torch.Tensor:
    """A residual stream with one channel of massive activations at one token."""
    drawn = torch.randn(1, 13, 576, generator=torch.Generator().manual_seed(0))
    drawn[0, 2, 507] = 344.0
    return drawn


def moved(stream: torch.Tensor, channel: int, by: float) -> float:
    other = stream.clone()
    other[0, 2, channel] += by
    return _difference(other, stream)


def test_a_massive_channel_is_rounded_as_its_own_size_is(stream: torch.Tensor) -> None:
    assert moved(stream, 507, 18 * 2.0**-15) < BOUND / 10  # 18 steps of float32 at 344
    assert moved(stream, 507, 344 * 2 * BOUND) > BOUND


def test_any_other_channel_is_held_to_the_root_mean_square(stream: torch.Tensor) -> None:
    scale = float(stream.square().mean().sqrt())
    assert scale > 4
    for channel in (0, 300):
        assert moved(stream, channel, 0.5 * BOUND * scale) < BOUND
        assert moved(stream, channel, 2 * BOUND * scale) > BOUND


def test_small_states_are_held_to_one() -> None:
    states = torch.full((1, 2, 4), 1e-3)
    assert _difference(states + 2 * BOUND, states) > BOUND
    assert _difference(states + BOUND / 2, states) < BOUND
    assert not _difference(states, torch.full_like(states, torch.nan)) <= BOUND
