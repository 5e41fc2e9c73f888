"""A tiny random policy and a trainer of it: Qwen2 of 32 numbers a token over 24 words, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from taiji_rl import RewardClient, reward_functions

WORDS, GROUP = 24, 4


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: at for at, word in enumerate(["<pad>", "<eos>", *(f"w{at}" for at in range(2, WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def trainer(
    folder: str,
    client: RewardClient,
    kind: type[GRPOTrainer] = GRPOTrainer,
    policy: Any = None,
    functions: Any = None,
    evaluate: int = 0,
    rate: float | None = None,
    **settings: Any,
) -> GRPOTrainer:
    """`evaluate`: on so many prompts. `rate`: of a PopoTrainer. `settings`: of the config."""
    usual = {
        "max_steps": 3,
        "per_device_train_batch_size": 2 * GROUP,
        "num_generations": GROUP,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "scale_rewards": "batch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    rows = [{"prompt": f"w{at} w{at + 1}", "user_id": f"u{at}"} for at in range(2, 18)]
    made = kind(
        model=policy or model(),
        reward_funcs=functions or reward_functions(client),
        args=GRPOConfig(folder, **{**usual, **settings}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:evaluate]) if evaluate else None,
        processing_class=tokenizer(),
        **({} if rate is None else {"rate": rate}),
    )
    made.remove_callback(PrinterCallback)
    return made


def steps(of: GRPOTrainer) -> list[dict[str, float]]:
    """What was logged, step by step."""
    return [one for one in of.state.log_history if "reward" in one]
