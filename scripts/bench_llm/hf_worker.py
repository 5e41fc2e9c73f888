"""Hugging Face transformers on torch as a worker (see `protocol.py`): f32, eager modules, SDPA attention, KV cache.

    hf_worker.py CHECKPOINT THREADS

Three ways of decoding are timed at the start: `generate`, and a plain loop over the model's forward pass with a growing
and with a preallocated cache. Measurements use the fastest: the peer at its best.
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from protocol import serve


class Stamps:
    """A streamer of `generate` that notes when each token came; the first call hands over the prompt."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass


class Engine:
    def __init__(self, checkpoint, threads):
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
        self.model.eval()
        prompts = [[7 + row] * 64 for row in range(4)]
        self.trials = {"loop, growing cache": [], "loop, static cache": [], "generate": []}
        for number in range(4):
            for self.way, seconds in self.trials.items():
                taken = self.generate(prompts, 24)["rest_s"]
                if number > 0:  # the first round warms
                    seconds.append(round(taken, 4))
        self.way = min(self.trials, key=lambda way: min(self.trials[way]))

    @torch.inference_mode()
    def generate(self, prompts, new_tokens):
        ids = torch.tensor(prompts)
        started = time.perf_counter()
        last, times = self.run(ids, new_tokens)
        return {"first_s": times[0] - started, "rest_s": times[-1] - times[0],
                "rest_tokens": (new_tokens - 1) * len(prompts), "last": last.tolist()}

    @torch.inference_mode()
    def roll_outs(self, prompts, group, new_tokens, seed):
        """By `generate` itself: what a trainer on transformers calls."""
        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        started = time.perf_counter()
        written = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=group, pad_token_id=0, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        return {"total_s": time.perf_counter() - started, "tokens": written.shape[0] * (written.shape[1] - ids.shape[1])}

    def run(self, ids, new_tokens):
        """The rows' last tokens, and when each token was there."""
        if self.way == "generate":
            stamps = Stamps()
            written = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, streamer=stamps,
                min_new_tokens=new_tokens, max_new_tokens=new_tokens)
            return written[:, -1], stamps.times[1:]
        if self.way == "loop, static cache":
            cache = StaticCache(config=self.model.config, max_cache_len=ids.shape[1] + new_tokens)
        else:
            cache = DynamicCache(config=self.model.config)
        token, times = ids, []
        for _ in range(new_tokens):
            # Only the last position's logits, as `generate` does.
            logits = self.model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
            times.append(time.perf_counter())
        return token[:, 0], times


engine = Engine(sys.argv[1], int(sys.argv[2]))
serve("hf", {"torch": torch.__version__, "way": engine.way, "trials_s": engine.trials},
      {"generate": lambda request: engine.generate(request["prompts"], request["new_tokens"]),
       "roll_outs": lambda request: engine.roll_outs(request["prompts"], request["group"], request["new_tokens"], request["seed"])})
