"""Rules that set a GRPOTrainer's `reward_weights` from step to step.

A callback is one step behind: TRL sums the rewards of a batch the moment it has them, so the weights of a step come
from the rewards of the steps before. taiji's own trainer (and `PopoTrainer`) uses those of the step itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import GRPOTrainer

from . import rules
from .client import RewardClient
from .contract import Rewards
from .functions import RewardFunction
from .popo import PopoTrainer

Answer = tuple[tuple[float | None, ...], tuple[float | None, ...] | None]
"""Its rewards, and those of the start for the same user."""
Group = Sequence[Answer]
"""The answers to one prompt."""


class StepWeights(TrainerCallback):
    """What such rules share: which rewards a step had, and where weights go.

    A rule is a list of numbers that it remembers (`_begin`, `_next`) and what these make of the weights (`_weights`).
    The list is kept in the trainer's state, and so in its checkpoints. On several processes the rewards are gathered:
    every process has the same weights.
    """

    scales: tuple[str, ...] = ("group", "batch", "none")
    """Settings of `scale_rewards` under which the rule's weights mean what they should."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._trainer: GRPOTrainer | None = None
        self._replies: list[Rewards] = []
        self._memory: list[float] = []

    def attach(self, trainer: GRPOTrainer) -> None:
        """Takes over the trainer's `reward_weights`. To be called once, before `trainer.train()`."""
        _check(self, trainer)
        self.names = list(trainer.reward_func_names)
        self._prepare()
        self._trainer = trainer
        trainer.reward_funcs[0].batches.listeners.append(self._replies.append)
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._remember(self._begin())

    @property
    def weights(self) -> dict[str, float]:
        """Of the next step, sum 1."""
        return dict(zip(self.names, self._weights(self._memory)[0]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a checkpoint was loaded, if one was."""
        if self._trainer is None:
            raise RuntimeError(f"{type(self).__name__} has no trainer: call attach(trainer) before trainer.train()")
        self._remember(state.stateful_callbacks.get(self._key(), self._begin()))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What an evaluation asked for between two steps belongs to none.
        self._replies.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._trainer is not None
        metrics = self._trainer._metrics["train"]
        for name, weight in self.weights.items():
            metrics[f"weights/{name}"].append(weight)
        groups = self._groups(self._trainer.num_generations)
        # None in a step that goes on with answers of an earlier one.
        if groups:
            self._remember(self._next(self._memory, groups))
        state.stateful_callbacks[self._key()] = self._memory

    def _prepare(self) -> None:
        """What depends on the rewards' names. Raises where the rule cannot work with these rewards."""

    def _begin(self) -> list[float]:
        raise NotImplementedError

    def _next(self, memory: list[float], groups: list[Group]) -> list[float]:
        raise NotImplementedError

    def _weights(self, memory: list[float]) -> tuple[list[float], list[float]]:
        """Shares with sum 1, to be looked at, and factors of the rewards."""
        raise NotImplementedError

    def _key(self) -> str:
        # Not the class's bare name: transformers would try to make a callback of that.
        return f"taiji_rl.{type(self).__name__}"

    def _remember(self, memory: list[float]) -> None:
        assert self._trainer is not None
        self._memory = list(memory)
        self._trainer.reward_weights = torch.tensor(self._weights(self._memory)[1], dtype=torch.float32)

    def _groups(self, size: int) -> list[Group]:
        """The step's answers by prompt. TRL cuts a batch across the processes in their order, and may cut a group."""
        mine = [_answers(reply, self.names) for reply in self._replies]
        everyones = gather_object(mine)
        batches = [
            [answer for part in everyones[batch :: len(mine)] for answer in part] for batch in range(len(mine))
        ]
        return [batch[at : at + size] for batch in batches for at in range(0, len(batch), size)]


class NashWeights(StepWeights):
    """Ascends the product of the rewards' gains over the policy of the start (Nash's bargaining solution), as taiji's
    rule `nash`.

    gain_k ← .9 gain_k + .1 (mean reward − mean of the start on the same prompts); weight w_k λ_k with λ_k = 1 /
    max(gain_k, .1 s_k), where s_k is the reward's deviation at the start, and the λ_k s_k are brought to sum 1 and kept
    from .1 to .9. `weights`: the parties' power w_k, sum 1; all alike if not given. The weights that are logged are w_k
    λ_k s_k with sum 1; `reward_weights`, which TRL multiplies raw rewards with, are w_k λ_k.

    One step behind: the weights of a step come from the rewards of the steps before.

    The recipe needs roll-outs of the start. `scale_rewards` must be "batch" (taiji's way) or "none": a division by each
    group's own deviation cancels the weights wherever only one reward differs.
    """

    scales = ("batch", "none")

    def __init__(self, client: RewardClient, weights: Mapping[str, float] | None = None):
        super().__init__()
        self._client = client
        self._given = weights
        self._powers: list[float] = []
        self._deviations: list[float] = []

    def _prepare(self) -> None:
        deviations = self._client.describe().start_deviations
        if deviations is None:
            raise ValueError("NashWeights: the recipe has no roll-outs of the start; add them to it, or use PopoLight")
        for name in self.names:
            if not deviations[name] > 0.0:
                raise ValueError(f"NashWeights: reward {name} did not differ at the start; take it out of the recipe")
        self._deviations = [deviations[name] for name in self.names]
        self._powers = _powers(self._given, self.names)

    def _begin(self) -> list[float]:
        return [0.0] * len(self.names)

    def _next(self, memory: list[float], groups: list[Group]) -> list[float]:
        means, start_means = [], []
        for reward, name in enumerate(self.names):
            values, starts = [], []
            for group in groups:
                values += rules.filled([rewards[reward] for rewards, _ in group])
                starts += _starts(group, reward, name)
            means.append(sum(values) / len(values))
            start_means.append(sum(starts) / len(starts))
        return rules.nash_gains(memory, means, start_means)

    def _weights(self, memory: list[float]) -> tuple[list[float], list[float]]:
        return rules.nash_weights(memory, self._powers, self._deviations)


class PopoLight(StepWeights):
    """POPO-light of the Taiji paper (arXiv 2606.03866, eq. 7): weights in proportion to σ_k / (|μ_k| + ε).

    taiji has weights for every group. TRL has one vector a batch, so this is the mean over the groups in which any
    reward differs: what taiji's rule `popo-light` reports as its weights. Where no group differs the weights stay.
    `epsilon`: in the rewards' units.

    One step behind: the weights of a step come from the rewards of the steps before. All alike in the first step.
    """

    def __init__(self, epsilon: float = 1e-3):
        super().__init__()
        if not epsilon > 0.0:
            raise ValueError(f"PopoLight: epsilon must be above 0, got {epsilon}")
        self.epsilon = epsilon

    def _begin(self) -> list[float]:
        return [1.0 / len(self.names)] * len(self.names)

    def _next(self, memory: list[float], groups: list[Group]) -> list[float]:
        by_reward = [
            [rules.filled([rewards[reward] for rewards, _ in group]) for reward in range(len(self.names))]
            for group in groups
        ]
        return rules.popo_light(by_reward, self.epsilon) or memory

    def _weights(self, memory: list[float]) -> tuple[list[float], list[float]]:
        return memory, memory


def _answers(reply: Rewards, names: Sequence[str]) -> list[Answer]:
    values = list(zip(*(reply.rewards[name] for name in names)))
    if reply.start is None:
        return [(of, None) for of in values]
    return list(zip(values, zip(*(reply.start[name] for name in names))))


def _starts(group: Group, reward: int, name: str) -> list[float]:
    """Of the start, for the answers of a group. A reward that applies to none of them gains nothing."""
    if all(rewards[reward] is None for rewards, _ in group):
        return [0.0] * len(group)
    values = [None if start is None else start[reward] for _, start in group]
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        raise ValueError(f"NashWeights: reward {name} has no mean of the start for a user; roll the start out for all")
    return known


def _powers(given: Mapping[str, float] | None, names: Sequence[str]) -> list[float]:
    if given is None:
        return [1.0 / len(names)] * len(names)
    if set(given) != set(names):
        raise ValueError(f"NashWeights: weights of {sorted(given)}, but the rewards are {sorted(names)}; give one each")
    powers = [float(given[name]) for name in names]
    if min(powers) < 0.0 or not abs(sum(powers) - 1.0) <= 1e-9:
        raise ValueError(f"NashWeights: weights must be 0 or above with sum 1, got {powers}")
    return powers


def _check(rule: StepWeights, trainer: GRPOTrainer) -> None:
    """Refuses a trainer in which `reward_weights` would not mean what the rule thinks."""
    name = type(rule).__name__
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(f"{name}: the trainer must be TRL's GRPOTrainer, got {type(trainer).__name__}")
    if rule._trainer is not None:
        raise ValueError(f"{name} has a trainer already; make another one for this trainer")
    others = [one for one in trainer.callback_handler.callbacks if isinstance(one, StepWeights) and one is not rule]
    if others or isinstance(trainer, PopoTrainer):
        owner = type(others[0] if others else trainer).__name__
        raise ValueError(f"{name}: {owner} sets the weights of this trainer; use one of the two")
    if trainer.args.reward_weights is not None:
        raise ValueError(f"{name} sets reward_weights itself; leave them out of GRPOConfig")
    if trainer.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"{name} weighs rewards, but {trainer.multi_objective_aggregation!r} weighs rewards that were divided by "
            "their deviation; set multi_objective_aggregation='sum_then_normalize'"
        )
    if trainer.scale_rewards not in rule.scales:
        usable = " or ".join(map(repr, rule.scales))
        raise ValueError(f"{name}: scale_rewards={trainer.scale_rewards!r} undoes its weights; set {usable}")
    sources = {id(one.batches) if isinstance(one, RewardFunction) else None for one in trainer.reward_funcs}
    if len(sources) != 1 or None in sources:
        raise ValueError(
            f"{name}: reward_funcs must be those of one reward_functions(client) and no others, "
            f"got {trainer.reward_func_names}"
        )
