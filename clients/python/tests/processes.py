"""One of several processes of a training, for test_trl.py: what the callbacks weigh, into a file a process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import support  # noqa: F401  (the package's place)
import tiny

from taiji_rl import NashWeights, PopoLight, PopoTrainer, RewardClient

url, folder = sys.argv[1:]
client = RewardClient(url)
found = {}
# Half a group a process; the second rule has two generations a step.
settings = {"per_device_train_batch_size": tiny.GROUP // 2, "steps_per_generation": 1}
for rule, generations in ((NashWeights(client), 1), (PopoLight(), 2)):
    trainer = tiny.trainer(folder, client, gradient_accumulation_steps=generations, **settings)
    rule.attach(trainer)
    trainer.train()
    found[type(rule).__name__] = [one["weights/semantic"] for one in tiny.steps(trainer)]
    rank = trainer.accelerator.process_index
try:
    tiny.trainer(folder, client, PopoTrainer, rate=1.0)
except ValueError as error:
    found["PopoTrainer"] = str(error)
Path(folder, f"weights-{rank}.json").write_text(json.dumps(found))
