"""taiji's rewards as verl's custom reward function.

    reward.custom_reward_function.path=…/taiji_rl/verl.py reward.custom_reward_function.name=compute_score

verl loads the file by its path, so it says where the rest of the package is by its full name.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

from taiji_rl.client import RewardClient


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    **_: Any,
) -> dict[str, float]:
    """`score`, the weighted sum of one answer's rewards, and each of them by its name for the log.

    The user is `extra_info["user_id"]`; the service `TAIJI_REWARDS_URL`, its key `TAIJI_REWARDS_KEY` where it wants
    one. `weights` by name come from `reward_kwargs.weights`; all alike, with sum 1, if not given. A reward that does
    not apply adds 0 and is logged as NaN.
    """
    user = (extra_info or {}).get("user_id")
    if user is None:
        raise ValueError("extra_info has no user_id; write it into the data set beside the prompt")
    client = _client(os.environ.get("TAIJI_REWARDS_URL"), os.environ.get("TAIJI_REWARDS_KEY"))
    found = client.rewards([user], texts=[solution_str])
    if weights is None:
        weights = dict.fromkeys(found.names, 1.0 / len(found.names))
    if set(weights) != set(found.names):
        raise ValueError(f"weights of {sorted(weights)}, but the rewards are {sorted(found.names)}; give one each")
    rewards = {name: found.rewards[name][0] for name in found.names}
    score = sum(weights[name] * (value or 0.0) for name, value in rewards.items())
    return {"score": score, **{name: math.nan if value is None else value for name, value in rewards.items()}}


@functools.lru_cache(maxsize=4)
def _client(url: str | None, key: str | None) -> RewardClient:
    """One a process, so that the service is asked once what it offers."""
    if not url:
        raise ValueError("TAIJI_REWARDS_URL is not set; set it to the reward service's URL for verl's workers")
    return RewardClient(url, key)
