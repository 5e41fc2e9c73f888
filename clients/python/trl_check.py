"""Does TRL train a checkpoint on a running reward service? Three steps of GRPOTrainer on the CPU, with what it was told
compared.

    taiji-trainer rewards serve --recipe R --stage align --listen 127.0.0.1:8095 &
    python trl_check.py --url http://127.0.0.1:8095 --checkpoint FOLDER --prompts rl.jsonl --out FOLDER

A line of the prompts is {"prompt": "…", "user_id": "…"}; a prompt is raw text, no chat template is applied. The rewards
that TRL has of every batch must be those of a second, direct call for the same completions. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from taiji_rl import NashWeights, PopoLight, RewardClient, load_tokenizer, reward_functions

STEPS, PROMPTS_A_STEP, GENERATIONS, COMPLETION_TOKENS = 3, 2, 4, 64


class Recorded(GRPOTrainer):
    """Keeps each batch's completions, users and the rewards that TRL made of them."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.batches: list[tuple[list[str], list[list[int]], torch.Tensor]] = []

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.batches.append(([row["user_id"] for row in inputs], completion_ids_list, rewards.cpu()))
        return rewards


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train three steps by TRL on a running reward service.")
    parser.add_argument("--url", required=True, help="of the reward service")
    parser.add_argument("--checkpoint", required=True, help="folder of a policy in Hugging Face's form")
    parser.add_argument("--prompts", required=True, type=Path, help="JSONL of prompt and user_id")
    parser.add_argument("--out", required=True, help="folder for the trained policy and its tokenizer")
    return parser.parse_args()


def made(given: argparse.Namespace, client: RewardClient, scratch: str) -> Recorded:
    """The trainer, before its first step."""
    rows = [json.loads(line) for line in given.prompts.read_text().splitlines() if line.strip()]
    rows = [{"prompt": row["prompt"], "user_id": row["user_id"]} for row in rows]
    if len(rows) < PROMPTS_A_STEP:
        raise SystemExit(f"{given.prompts} has {len(rows)} prompts; {PROMPTS_A_STEP} are needed")
    trainer = Recorded(
        model=AutoModelForCausalLM.from_pretrained(given.checkpoint, dtype=torch.float32),
        reward_funcs=reward_functions(client),
        args=GRPOConfig(
            scratch,
            max_steps=STEPS,
            per_device_train_batch_size=PROMPTS_A_STEP * GENERATIONS,
            num_generations=GENERATIONS,
            max_completion_length=COMPLETION_TOKENS,
            scale_rewards="batch",
            learning_rate=1e-5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(given.checkpoint),
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for the one line
    return trainer


def compare(trainer: Recorded, client: RewardClient) -> None:
    """TRL's rewards against those of a direct call, to the last bit of f32."""
    assert len(trainer.batches) == STEPS, f"{STEPS} batches were expected, TRL made {len(trainer.batches)}"
    for step, (users, completions, found) in enumerate(trainer.batches):
        direct = client.rewards(users, token_ids=completions)
        for column, name in enumerate(trainer.reward_func_names):
            values = [float("nan") if value is None else value for value in direct.rewards[name]]
            torch.testing.assert_close(
                found[:, column],
                torch.tensor(values, dtype=torch.float32),
                rtol=0,
                atol=0,
                equal_nan=True,
                msg=lambda why, at=step, of=name: f"step {at}, reward {of}: TRL has others than the service\n{why}",
            )


def main() -> None:
    given = arguments()
    client = RewardClient(given.url)
    rule = PopoLight() if client.describe().start_deviations is None else NashWeights(client)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = made(given, client, scratch)
        rule.attach(trainer)
        trainer.train()
    compare(trainer, client)
    trainer.model.save_pretrained(given.out)
    trainer.processing_class.save_pretrained(given.out)
    logs = [one for one in trainer.state.log_history if "reward" in one]
    names = trainer.reward_func_names
    found = {
        "steps": trainer.state.global_step,
        "rule": type(rule).__name__,
        "rewards": {name: [one[f"rewards/{name}/mean"] for one in logs] for name in names},
        "weights": {name: [one[f"weights/{name}"] for one in logs] for name in names},
        "mean_length": [one["completions/mean_length"] for one in logs],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
