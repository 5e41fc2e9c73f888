"""A small LoRA trained on English and merged: a checkpoint that lies on no quantisation grid, to judge rounding on.

In: a checkpoint folder (SmolLM2-135M-Instruct as `taiji-trainer convert gguf` writes it), a text, the folder to write. Trains adapters of
rank 8 on all linear layers for 30 steps of 4 x 256 tokens and merges them. Called by scripts/int4_check.sh (`make int4-merged-check`):

    python scripts/lora_merged.py CHECKPOINT calibration.txt OUT
"""

import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW, ROWS, STEPS = 256, 4, 30
TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]


def main(checkpoint, text, out):
    torch.manual_seed(1)
    tokens = AutoTokenizer.from_pretrained(checkpoint).encode(text.read_text(), add_special_tokens=False)
    windows = torch.tensor(tokens[:len(tokens) // WINDOW * WINDOW]).view(-1, WINDOW)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0)
    order = torch.randperm(len(windows))
    for step in range(STEPS):
        batch = windows[order[torch.arange(step * ROWS, (step + 1) * ROWS) % len(order)]]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.merge_and_unload().save_pretrained(out)
    for name in TOKENIZER:
        shutil.copy(checkpoint / name, out / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
