"""Reward functions for TRL: one a reward, one request a batch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .client import RewardClient
from .contract import Rewards

_MOST_KEPT = 8
"""Batches of which some function has not yet been called; more than one only where batches are scored at the same
time."""


@dataclass
class _Reply:
    rewards: Rewards
    taken: set[str] = field(default_factory=set)


class RewardBatches:
    """The replies that functions of one service share: the first of them asks, the others find its reply.

    A reply is given to each function once. So a batch that happens to equal an earlier one is asked for again, and
    `listeners`, which hear of every reply, hear of every batch.
    """

    def __init__(self, client: RewardClient, names: Sequence[str]):
        self.listeners: list[Callable[[Rewards], None]] = []
        self._client = client
        self._names = frozenset(names)
        self._replies: OrderedDict[tuple[Any, ...], _Reply] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str, completion_ids: Sequence[Sequence[int]], user_ids: Sequence[str]) -> list[float | None]:
        """A reward of a batch. Whoever asks for the batch while it is on its way waits for it."""
        batch = (tuple(user_ids), tuple(tuple(ids) for ids in completion_ids))
        with self._lock:
            reply = self._replies.get(batch)
            if reply is None or name in reply.taken:
                reply = self._ask(batch)
            reply.taken.add(name)
            if reply.taken == self._names:
                del self._replies[batch]
        return reply.rewards.rewards[name]

    def _ask(self, batch: tuple[Any, ...]) -> _Reply:
        users, completions = batch
        reply = _Reply(self._client.rewards(users, token_ids=completions))
        self._replies[batch] = reply
        while len(self._replies) > _MOST_KEPT:
            self._replies.popitem(last=False)
        for listener in self.listeners:
            listener(reply.rewards)
        return reply


class RewardFunction:
    """One reward as TRL wants it; its name is the reward's, and so TRL logs `rewards/<name>/mean`."""

    def __init__(self, name: str, batches: RewardBatches):
        self.__name__ = name
        self.batches = batches

    def __call__(
        self, *, completion_ids: Sequence[Sequence[int]], user_id: Sequence[str] | None = None, **_: Any
    ) -> list[float | None]:
        if user_id is None:
            raise ValueError(
                f"reward {self.__name__}: the dataset has no column user_id; add it, and keep remove_unused_columns off"
            )
        return self.batches.of(self.__name__, completion_ids, user_id)


def reward_functions(client: RewardClient) -> list[RewardFunction]:
    """One function a reward of the service, for `reward_funcs` of TRL's trainers. All together make one request a batch
    and process."""
    names = client.describe().names
    batches = RewardBatches(client, names)
    return [RewardFunction(name, batches) for name in names]
