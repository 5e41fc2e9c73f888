"""The peer on a GPU: what its memory and matrix units reach through PyTorch, and transformers' `generate` on the same shape."""

import json
import statistics
import time

PROOF = 5


def seconds(job, rounds=10):
    """Median time of a job on the GPU."""
    import torch
    job()
    taken = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        job()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def bounds():
    """Bytes a second (read and written) of a copy, operations a second of a product."""
    import torch
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copied = 2 * source.numel() / seconds(lambda: target.copy_(source))
    del source, target
    one, other = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiplied = 2 * 8192**3 / seconds(lambda: one @ other)
    del one, other
    torch.cuda.empty_cache()
    return copied, multiplied


def measure(figures, checkpoint, shape, batches, lengths, left):
    """Random weights made on the GPU; greedy, to the last token, one warm-up and two rounds a batch."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    prompt, new = lengths
    settings = AutoConfig.for_model(**json.loads((checkpoint / "config.json").read_text()))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    for batch in batches:
        if left() < 30:
            figures.say(PROOF, f"{shape}, transformers, batch {batch}", "no time left")
            break
        ids = torch.randint(3, settings.vocab_size, (batch, prompt), device="cuda")
        taken = {}
        for count in (1, new):
            rounds = []
            for _ in range(3):
                started = time.perf_counter()
                with torch.inference_mode():
                    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                                   min_new_tokens=count, max_new_tokens=count)
                torch.cuda.synchronize()
                rounds.append(time.perf_counter() - started)
            taken[count] = min(rounds[1:])
        name = f"{shape} bf16, transformers' generate, batch {batch}"
        figures.add(PROOF, f"{name}: decode", batch * (new - 1) / (taken[new] - taken[1]), "tokens/s")
        figures.add(PROOF, f"{name}: prefill of {prompt}", batch * prompt / taken[1], "tokens/s")
    del model
    torch.cuda.empty_cache()
