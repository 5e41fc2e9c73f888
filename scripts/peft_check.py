#!/usr/bin/env python3
"""Our LoRA files against Hugging Face's PEFT, both ways, on a tiny Qwen2 and a tiny Llama.

Needs torch, transformers and peft. PEFT loads an adapter that our trainer trained and wrote, our trainer loads one that PEFT
wrote, and transformers loads the merged checkpoint; the log-probabilities of all tokens must agree within 1e-4.

    python3 scripts/peft_check.py [--test-binary FILE]

Without --test-binary it builds the trainer's tests by cargo.
"""

import argparse
import json
import os
import subprocess
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

TEST = "model::lora_tests::adapters_for_peft"
BUILD = ["cargo", "test", "--release", "--locked", "--workspace", "--lib"]
BOUND = 1e-4
SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.2)


def log_probabilities(model, tokens):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-binary", help="the trainer's unit tests, built")
    options = parser.parse_args()
    scaled = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=32)
    check(options, "Qwen2", Qwen2ForCausalLM, Qwen2Config(**SHAPE))
    check(options, "Llama", LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=scaled))


def check(options, kind, model_class, config):
    torch.manual_seed(3)
    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: os.path.join(folder, name)
        base = model_class(config)
        for name, value in base.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.2)
        base.save_pretrained(at("base"))
        tokens = torch.randint(0, 64, (40,)).tolist()
        with open(at("tokens.json"), "w") as file:
            json.dump(tokens, file)

        theirs = get_peft_model(base, LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"))
        for name, value in theirs.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.2)
        theirs.save_pretrained(at("theirs"))
        expected = {"theirs": log_probabilities(theirs.eval(), tokens)}

        command = [options.test_binary] if options.test_binary else BUILD + ["--"]
        subprocess.run(command + ["--ignored", "--exact", TEST], check=True, env={**os.environ, "TAIJI_PEFT": folder})

        plain = AutoModelForCausalLM.from_pretrained(at("base"), dtype=torch.float32).eval()
        before = log_probabilities(plain, tokens)
        expected["ours"] = log_probabilities(PeftModel.from_pretrained(plain, at("ours")).eval(), tokens)
        merged = AutoModelForCausalLM.from_pretrained(at("merged"), dtype=torch.float32).eval()
        expected["merged"] = log_probabilities(merged, tokens)
        for name, wanted in expected.items():
            with open(at(f"{name}.json")) as file:
                found = torch.tensor(json.load(file), dtype=torch.float64)
            worst = (found - wanted).abs().max().item()
            moved = (wanted - before).abs().max().item()
            print(f"{kind}, {name}: largest difference {worst:.2e}; the adapter moves log-probabilities by up to {moved:.2f}")
            assert worst < BOUND and moved > 0.01, (kind, name)


if __name__ == "__main__":
    main()
