"""The rules' arithmetic, operation by operation that of taiji's own trainer, so that both give the same weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

DECAY = 0.9
"""Nash: running mean of the gains."""
LEAST_GAIN = 0.1
"""Nash: a gain counts as at least so many deviations; at the beginning all gains are noise."""
FLOOR = 0.1
"""Nash: no share below."""
SAME = 1e-6
"""A group's rewards differ if their deviation is above this share of the largest of them; what is below is rounding of
f32."""


def filled(group: Sequence[float | None]) -> list[float]:
    """Values of a group; where the reward does not apply the mean of the others, 0 if there is none."""
    known = [value for value in group if value is not None]
    mean = sum(known) / max(len(known), 1)
    return [mean if value is None else value for value in group]


def limited(values: Sequence[float], floor: float) -> list[float]:
    """Shares in proportion to `values`, all alike where none is above 0, none below `floor`: who would be below gets
    the floor, the others share the rest in proportion."""
    count, total = len(values), sum(values)
    usable = math.isfinite(total) and total > 0.0
    shares = [value / total for value in values] if usable else [1.0 / count] * count
    fixed = [False] * count
    for _ in range(count):  # each round fixes one more at least
        below = [at for at in range(count) if not fixed[at] and shares[at] < floor]
        if not below:
            break
        for at in below:
            fixed[at] = True
        free = sum(shares[at] for at in range(count) if not fixed[at])
        left = 1.0 - floor * sum(fixed)
        shares = [floor if fixed[at] else shares[at] * left / free for at in range(count)]
    return shares


def softmax(logarithms: Sequence[float]) -> list[float]:
    """Without overflow."""
    largest = max(logarithms)
    return limited([math.exp(value - largest) for value in logarithms], 0.0)


def nash_gains(gains: Sequence[float], means: Sequence[float], start_means: Sequence[float]) -> list[float]:
    """Running gain of each reward's mean over the start's on the same prompts."""
    return [
        DECAY * gain + (1.0 - DECAY) * (mean - start_mean)
        for gain, mean, start_mean in zip(gains, means, start_means, strict=True)
    ]


def nash_weights(
    gains: Sequence[float], weights: Sequence[float], deviations: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Shares w_k λ_k s_k with sum 1, and the factors w_k λ_k of the rewards, with λ_k = 1 / max(gain_k, .1 s_k) and the
    λ_k s_k brought to sum 1 and kept from .1 to .9."""
    shares = [
        deviation / max(gain, LEAST_GAIN * deviation) for gain, deviation in zip(gains, deviations, strict=True)
    ]
    powers = [share * weight for share, weight in zip(limited(shares, FLOOR), weights, strict=True)]
    factors = [power / deviation for power, deviation in zip(powers, deviations)]
    return limited(powers, 0.0), factors


def popo_light(groups: Sequence[Sequence[Sequence[float]]], epsilon: float) -> list[float] | None:
    """Mean of w_k ∝ σ_k / (|μ_k| + ε) over the groups (`[group][reward][answer]`) in which any reward differs; `None`
    where none does."""
    rows = []
    for group in groups:
        spreads = [_spread(values, epsilon) for values in group]
        if any(spread > 0.0 for spread in spreads):
            rows.append(limited(spreads, 0.0))
    if not rows:
        return None
    return limited([sum(row[reward] for row in rows) for reward in range(len(rows[0]))], 0.0)


def _spread(values: Sequence[float], epsilon: float) -> float:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    largest = max(abs(value) for value in values)
    return (deviation if deviation > SAME * largest else 0.0) / (abs(mean) + epsilon)
