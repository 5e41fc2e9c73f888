"""Drives a running taiji with OpenAI's own client library; called by openai.rs.

    openai_client.py BASE_URL KEY PROBE

PROBE is a JSON list of token ids: a prompt the model was made for. The server has openai.template = "plain".
Ends with 0 when everything is as OpenAI's client expects it.
"""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

BASE, KEY, PROBE = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=60)
LLM, ENCODER = [model.id for model in CLIENT.models.list().data]
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what next?"}]


def complete(**more):
    arguments = {"model": LLM, "prompt": PROBE, "max_tokens": 60, "temperature": 0}
    return CLIENT.completions.create(**{**arguments, **more})


def refused(kind, call, code=None, param=None):
    try:
        call()
    except kind as error:
        assert type(error) is kind, (kind, error)
        assert (code, param) == (code and error.code, param and error.param), (code, param, error.body)
        return
    raise AssertionError(f"no {kind.__name__}")


def check_models():
    assert CLIENT.models.retrieve(LLM).owned_by == "taiji"
    assert len({LLM, ENCODER}) == 2


def check_completions():
    answer = complete()
    text = answer.choices[0].text
    assert text and "</answer>" not in text and answer.choices[0].finish_reason == "stop", answer
    assert answer.usage.prompt_tokens == len(PROBE)
    assert answer.usage.total_tokens == len(PROBE) + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert complete().choices[0].text == text, "greedy is the same each time"
    short = complete(max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    assert text.startswith(short.choices[0].text)
    two = complete(prompt=[PROBE, PROBE[:-4]])
    assert [choice.index for choice in two.choices] == [0, 1] and two.choices[0].text == text
    long = complete(max_tokens=100, extra_body={"ignore_eos": True})
    assert long.usage.completion_tokens == 100 and long.choices[0].text.startswith(text + "</answer>"), long


def check_stops():
    text = complete().choices[0].text
    words = text.split(" ")
    stop = " " + words[len(words) // 2]
    for given in (stop, ["never to be seen", stop]):
        cut = complete(stop=given)
        assert cut.choices[0].text == text[: text.index(stop)], (text, stop, cut)
        assert cut.choices[0].finish_reason == "stop"
    chunks = list(complete(stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]


def check_seeds():
    def draw(seed, **more):
        return complete(temperature=1.5, seed=seed, **more)

    first = draw(7).choices[0].text
    assert draw(7).choices[0].text == first, "one seed, one text"
    assert len({draw(seed).choices[0].text for seed in range(5)}) > 1, "other seeds, other texts"
    three = [choice.text for choice in draw(5, n=3).choices]
    assert three == [draw(seed).choices[0].text for seed in (5, 6, 7)], "answer i has the seed plus i"


def check_logprobs():
    choice = complete(logprobs=1).choices[0]
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert len(found.token_logprobs) == len(found.tokens) == len(found.text_offset)
    assert all(value <= 0 for value in found.token_logprobs)
    assert [choice.text[at:][: len(token)] for at, token in zip(found.text_offset, found.tokens)] == found.tokens
    chat = CLIENT.chat.completions.create(model=LLM, messages=CHAT, max_tokens=5, logprobs=True)
    assert len(chat.choices[0].logprobs.content) <= 5 and chat.choices[0].logprobs.content[0].logprob <= 0


def check_streams():
    text = complete().choices[0].text
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    *pieces, counts = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == text
    assert pieces[-1].choices[0].finish_reason == "stop" and len(pieces) > 5
    assert counts.choices == [] and counts.usage.prompt_tokens == len(PROBE)
    assert len({chunk.id for chunk in chunks}) == 1


def check_chat():
    answer = CLIENT.chat.completions.create(model=LLM, messages=CHAT, temperature=0, max_completion_tokens=20)
    message = answer.choices[0].message
    assert message.role == "assistant" and "</answer>" not in message.content
    arguments = {"model": LLM, "messages": CHAT, "temperature": 0, "max_tokens": 20, "stream": True}
    *chunks, counts = CLIENT.chat.completions.create(**arguments, stream_options={"include_usage": True})
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert counts.usage.completion_tokens == answer.usage.completion_tokens


def check_embeddings():
    texts = ["running shoes", "coffee beans", "running shoes"]
    packed = CLIENT.embeddings.create(model=ENCODER, input=texts)  # the client asks for base64 by itself
    plain = CLIENT.embeddings.create(model=ENCODER, input=texts, encoding_format="float")
    first, second, third = [entry.embedding for entry in packed.data]
    assert first == third != second and abs(math.sqrt(sum(value * value for value in first)) - 1) < 1e-3
    assert all(abs(a - b) < 1e-6 for a, b in zip(first, plain.data[0].embedding))
    assert packed.usage.prompt_tokens > len(texts)


def check_errors():
    refused(openai.AuthenticationError, lambda: CLIENT.with_options(api_key="wrong").models.list(), "invalid_api_key")
    refused(openai.NotFoundError, lambda: complete(model="gpt"), "model_not_found", "model")
    refused(openai.NotFoundError, lambda: CLIENT.models.retrieve("gpt"), "model_not_found")
    refused(openai.NotFoundError, lambda: CLIENT.moderations.create(input="x"), "not_found")
    refused(openai.BadRequestError, lambda: complete(prompt=[1] * 5000), "context_length_exceeded")
    refused(openai.BadRequestError, lambda: complete(prompt="x", max_tokens=100000), "context_length_exceeded")
    refused(openai.BadRequestError, lambda: complete(prompt=[10**6]))
    refused(openai.BadRequestError, lambda: complete(temperature=3), param="temperature")
    refused(openai.BadRequestError, lambda: complete(best_of=4), param="best_of")
    refused(openai.BadRequestError, lambda: complete(extra_body={"colour": 1}), param="colour")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    chat = CLIENT.chat.completions.create
    refused(openai.BadRequestError, lambda: chat(model=LLM, messages=CHAT, tools=[tool]), param="tools")


def check_parallel_streams():
    prompts = [PROBE[: len(PROBE) - place] for place in range(8)]
    alone = [complete(prompt=prompt).choices[0].text for prompt in prompts]

    def read(prompt):
        return "".join(chunk.choices[0].text for chunk in complete(prompt=prompt, stream=True))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, prompts))
    assert together == alone, "what an answer is does not depend on its company"


for name, check in list(globals().items()):
    if name.startswith("check_"):
        check()
        print(f"{name}: ok")
