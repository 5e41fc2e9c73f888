"""Rewards of taiji for trainers of other projects: TRL and verl.

`RewardClient` and `reward_functions` need the standard library alone. `NashWeights`, `PopoLight`, `PopoTrainer` and
`load_tokenizer` need TRL, which is imported when one of them is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .client import RewardClient
from .contract import Description, Rewards
from .errors import RewardError, RewardsMalformed, RewardsRefused, RewardsUnavailable
from .functions import RewardFunction, reward_functions

if TYPE_CHECKING:
    from .callbacks import NashWeights, PopoLight
    from .popo import PopoTrainer
    from .tokenizer import load_tokenizer

__all__ = [
    "Description",
    "NashWeights",
    "PopoLight",
    "PopoTrainer",
    "RewardClient",
    "RewardError",
    "RewardFunction",
    "Rewards",
    "RewardsMalformed",
    "RewardsRefused",
    "RewardsUnavailable",
    "load_tokenizer",
    "reward_functions",
]

_WITH_TRL = {
    "NashWeights": "callbacks",
    "PopoLight": "callbacks",
    "PopoTrainer": "popo",
    "load_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TRL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_WITH_TRL[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {error.name}, which is not installed: pip install 'taiji-rl[trl]'") from error
