"""Hugging Face transformers on torch as a worker (see `protocol.py`): f32, eager modules, SDPA attention, KV cache.

    hf_worker.py CHECKPOINT THREADS

Two ways of decoding are timed at the start, `generate` and a plain loop over the model's forward pass, each with a
growing and with a preallocated cache; measurements use the fastest: the peer at its best.
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from protocol import serve


class Engine:
    def __init__(self, checkpoint, threads):
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
        self.model.eval()
        self.trials = {}
        prompts = [[7 + row] * 64 for row in range(4)]
        for way in ("dynamic", "static"):
            self.way = way
            self.generate(prompts, 8)
            self.trials[way] = round(self.generate(prompts, 24)["rest_s"], 4)
        self.trials["generate"] = round(self.time_generate(prompts, 24), 4)
        self.way = min(("dynamic", "static"), key=self.trials.get)
        if self.trials["generate"] < 0.97 * self.trials[self.way]:
            sys.exit("transformers' generate is faster than the plain loop here: measure with it")

    def cache(self, rows, length):
        if self.way == "static":
            return StaticCache(config=self.model.config, max_cache_len=length)
        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def generate(self, prompts, new_tokens):
        ids = torch.tensor(prompts)
        cache = self.cache(len(prompts), ids.shape[1] + new_tokens)
        started = time.perf_counter()
        # Only the last position's logits, as `generate` does.
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            logits = self.model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
        ended = time.perf_counter()
        return {"first_s": first - started, "rest_s": ended - first, "rest_tokens": (new_tokens - 1) * len(prompts),
                "last": token[:, 0].tolist()}

    @torch.inference_mode()
    def time_generate(self, prompts, new_tokens):
        """Seconds of `generate` after the first token: the difference of two runs."""
        ids, seconds = torch.tensor(prompts), {}
        for count in (1, 1, new_tokens):
            started = time.perf_counter()
            self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                                min_new_tokens=count, max_new_tokens=count)
            seconds[count] = time.perf_counter() - started
        return seconds[new_tokens] - seconds[1]


engine = Engine(sys.argv[1], int(sys.argv[2]))
serve("hf", {"torch": torch.__version__, "way": engine.way, "trials_s": engine.trials},
      {"generate": lambda request: engine.generate(request["prompts"], request["new_tokens"])})
