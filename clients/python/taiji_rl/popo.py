"""POPO for TRL: mirror descent on the rewards' weights by the products of their gradients."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from . import rules

_KEY = "taiji_rl.PopoTrainer"


class PopoTrainer(GRPOTrainer):
    """Pareto Optimal Policy Optimization as published (Taiji, arXiv 2606.03866, eq. 5 and 6), on rewards.

    In every step, before its update: I_k = ⟨g_k, Σ_j g_j⟩ with g_k the policy gradient of reward k's centred values
    alone on the step's own batch; w_k ← w_k · exp(rate · I_k), divided by the sum; then GRPO on Σ w_k r_k with the new
    weights. Divergence, entropy bonus and a router's loss stay out of the g_k. `rate`: per unit of ‖g‖², so it belongs
    to a model and a `loss_type`; look at `indicator/<name>` in the log first. The weights begin with `reward_weights`
    of the config, all alike if not given. They are kept in the trainer's state, and so in checkpoints.

    Costs one forward and backward pass more a reward and step, and memory for as many gradients as there are rewards.

    One process, no DeepSpeed. Gradient accumulation is fine as long as one generation makes one step.
    """

    def __init__(self, *args: Any, rate: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not (rate > 0.0 and math.isfinite(rate)):
            raise ValueError(f"PopoTrainer: rate must be above 0, got {rate}")
        self.rate = rate
        self.indicators: list[float] = []
        self._fresh_rewards: torch.Tensor | None = None
        _check(self)
        count = len(self.reward_funcs)
        self._first = [math.log(weight) for weight in self.args.reward_weights or [1.0 / count] * count]
        self._set(self._first)

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            self._fresh_rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        # TRL shuffles the batch after this; the number of an answer says to which group it belongs.
        batch["answer"] = torch.arange(len(batch["advantages"]), device=batch["advantages"].device)
        return batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self._fresh_rewards is not None:
            rewards, self._fresh_rewards = self._fresh_rewards, None
            self._reweigh(rewards, self._buffered_inputs)  # `inputs` is one of these
        return inputs

    def _reweigh(self, rewards: torch.Tensor, micro_batches: list[dict[str, Any]]) -> None:
        """Moves the weights and replaces the advantages that TRL computed with the weights before."""
        before = self._advantages(rewards)
        theirs = torch.cat([batch["advantages"] for batch in micro_batches])
        if not torch.allclose(before[torch.cat([batch["answer"] for batch in micro_batches])], theirs, atol=1e-5):
            raise RuntimeError("PopoTrainer: this TRL makes other advantages of rewards than 1.16.0; install that one")
        alone = centred(rewards, self.num_generations)
        self.indicators = indicators([self._gradient(micro_batches, of) for of in alone.unbind(dim=1)])
        logarithms = self.state.stateful_callbacks.get(_KEY, {}).get("logarithms", self._first)
        if all(map(math.isfinite, self.indicators)):
            logarithms = [one + self.rate * by for one, by in zip(logarithms, self.indicators)]
        else:  # a step without a gradient says nothing, and the weights stay
            self.indicators = [math.nan] * len(logarithms)
        self.state.stateful_callbacks[_KEY] = {"logarithms": logarithms}
        self._set(logarithms)
        advantages = self._advantages(rewards)
        for batch in micro_batches:
            batch["advantages"] = advantages[batch["answer"]]
        self._log_reweighed(rewards, advantages)

    def _set(self, logarithms: list[float]) -> None:
        self.weights = rules.softmax(logarithms)
        self.reward_weights = torch.tensor(self.weights, dtype=torch.float32)

    def _gradient(self, micro_batches: list[dict[str, Any]], advantages: torch.Tensor) -> list[torch.Tensor | None]:
        """Of the policy's loss with these advantages over the step, as the step's own micro-batches add it up."""
        parameters = [one for one in self.model.parameters() if one.requires_grad]
        total: list[torch.Tensor | None] = [None] * len(parameters)
        with self._policy_loss_alone():
            for batch in micro_batches:
                with self.compute_loss_context_manager():
                    loss = self._compute_loss(self.model, {**batch, "advantages": advantages[batch["answer"]]})
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                total = [one if by is None else by if one is None else one.add_(by) for one, by in zip(total, found)]
        return total

    @contextmanager
    def _policy_loss_alone(self) -> Iterator[None]:
        """Without divergence, bonus and router's loss; what is measured on the way is no step's and is not logged."""
        apart = {
            "beta": 0.0,
            "_entropy_bonus_enabled": False,
            "aux_loss_enabled": False,
            "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        }
        kept = {name: getattr(self, name) for name in apart}
        try:
            vars(self).update(apart)
            yield
        finally:
            vars(self).update(kept)

    def _weighted(self, rewards: torch.Tensor) -> torch.Tensor:
        weighted = (rewards * self.reward_weights.to(rewards.device).unsqueeze(0)).nansum(dim=1)
        return weighted.masked_fill(rewards.isnan().all(dim=1), torch.nan)

    def _advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """TRL's `sum_then_normalize`, one process. A reward that does not apply counts as 0 there."""
        groups = self._weighted(rewards).view(-1, self.num_generations)
        advantages = groups - groups.nanmean(dim=1, keepdim=True)
        if self.scale_rewards == "group":
            advantages = advantages / (nanstd(groups, dim=1, keepdim=True) + 1e-4)
        elif self.scale_rewards == "batch":
            advantages = advantages / (nanstd(groups.flatten()) + 1e-4)
        return advantages.flatten().nan_to_num(nan=0.0)

    def _log_reweighed(self, rewards: torch.Tensor, advantages: torch.Tensor) -> None:
        """The new weights, and what TRL logged with the old ones, put right."""
        metrics = self._metrics["train"]
        for name, weight, indicator in zip(self.reward_func_names, self.weights, self.indicators):
            metrics[f"weights/{name}"].append(weight)
            metrics[f"indicator/{name}"].append(indicator)
        weighted = self._weighted(rewards)
        metrics["reward"][-1] = weighted.nanmean().item()
        metrics["reward_std"][-1] = nanstd(weighted).item()
        for _ in advantages:
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(advantages.tolist())


def centred(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """`[answer, reward]` minus the group's mean; 0 where the reward does not apply, or differs in the group by no more
    than rounding."""
    groups = rewards.double().view(-1, group, rewards.size(1))
    mean = groups.nanmean(dim=1, keepdim=True).nan_to_num(nan=0.0)
    groups = torch.where(groups.isnan(), mean, groups)
    differs = groups.std(dim=1, keepdim=True) > rules.SAME * groups.abs().amax(dim=1, keepdim=True)
    return ((groups - groups.mean(dim=1, keepdim=True)) * differs).view_as(rewards).to(rewards.dtype)


def indicators(gradients: list[list[torch.Tensor | None]]) -> list[float]:
    """I_k = ⟨g_k, Σ_j g_j⟩, of `[reward][parameter]`."""
    found = [0.0] * len(gradients)
    for parts in zip(*gradients):
        known = [(at, part.to(_wide(part.dtype))) for at, part in enumerate(parts) if part is not None]
        total = sum(part for _, part in known)
        for at, part in known:
            found[at] += (part * total).sum(dtype=torch.float64).item()
    return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(trainer: PopoTrainer) -> None:
    """Refuses what would give other gradients than the step's, or other advantages."""
    args = trainer.args
    weights = args.reward_weights
    reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    one_generation = args.steps_per_generation == args.gradient_accumulation_steps and args.num_iterations == 1
    needs = [
        (trainer.accelerator.num_processes == 1, "sees the gradients of one process; use one, or NashWeights"),
        (not trainer.is_deepspeed_enabled, "takes gradients that DeepSpeed keeps to itself; run without"),
        (not trainer.is_fsdp_enabled, "takes gradients that FSDP keeps to itself; run without"),
        (not args.fp16, "does not scale losses as fp16 wants; set bf16"),
        (not reentrant, "needs gradient_checkpointing_kwargs={'use_reentrant': False}"),
        (
            one_generation,
            "needs one generation a step; set steps_per_generation to gradient_accumulation_steps, num_iterations to 1",
        ),
        (
            trainer.multi_objective_aggregation == "sum_then_normalize",
            "weighs rewards; set multi_objective_aggregation='sum_then_normalize'",
        ),
        (not trainer._is_vlm, "trains models of text alone"),
        (
            weights is None or (min(weights) > 0.0 and abs(sum(weights) - 1.0) <= 1e-9),
            "needs reward_weights above 0 with sum 1, or none",
        ),
    ]
    for holds, otherwise in needs:
        if not holds:
            raise ValueError(f"PopoTrainer {otherwise}")
