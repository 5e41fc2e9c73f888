"""Rewards of taiji for trainers of other projects: TRL and verl.

The standard library alone is needed.
"""

from __future__ import annotations

from .client import RewardClient
from .contract import Description, Rewards
from .errors import RewardError, RewardsMalformed, RewardsRefused, RewardsUnavailable
from .functions import RewardFunction, reward_functions

__all__ = [
    "Description",
    "RewardClient",
    "RewardError",
    "RewardFunction",
    "Rewards",
    "RewardsMalformed",
    "RewardsRefused",
    "RewardsUnavailable",
    "reward_functions",
]
