"""PyTorch's half of `make bench-sft`: as crates/trainer/benches/sft_worker.rs, by transformers and peft, eager, on one thread."""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


def main(folder):
    setting = json.loads((folder / "batch.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    if setting["rank"]:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(r=setting["rank"], lora_alpha=2 * setting["rank"], target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    plain = [weight for weight in trained if weight.dim() < 2]
    matrices = [weight for weight in trained if weight.dim() >= 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting["lr"], betas=(0.9, 0.98), eps=1e-9)
    texts, targets = torch.tensor(setting["texts"]), torch.tensor(setting["targets"])
    weights = torch.tensor(setting["weights"])
    # Only learned rows have logits.
    rows = weights.nonzero()[:, 0]
    weights = weights[rows].repeat(len(texts))
    targets = targets[:, rows].flatten()
    base = model.get_base_model() if setting["rank"] else model

    def step():
        hidden = base.model(input_ids=texts).last_hidden_state[:, rows].flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(base.lm_head(hidden), targets, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    for line in sys.stdin:
        losses = [step() for _ in range(int(line))]
        print(losses[0], flush=True)


main(pathlib.Path(sys.argv[1]))
