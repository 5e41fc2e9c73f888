"""The language of the workers: JSON objects, one a line, on standard input and output. This page is its description.

A worker is one process with one engine and one model. It prints `{"ready": ENGINE, ...}` once the model is loaded, then
answers every request line with one line, `{"error": TEXT}` if it could not. It works at nothing between requests.
Everything but `roll_outs` is greedy, and all ignores stop tokens, so that all engines do the same work. Times are seconds.

| op | request | answer | workers |
|---|---|---|---|
| `generate` | `prompts` (lists of token ids, all of one length), `new_tokens` | `first_s`, `rest_s`, `rest_tokens`, `last` | all |
| `trace` | `requests` (`at_s`, `prompt`, `new_tokens`), `static_rows` (0 = continuous), `padded` | `makespan_s`, `new_tokens`, `wait_s` | ours |
| `gap` | `rows` (prompts), `new_tokens`, `warm_tokens`, `prompt_alone`, `prompt_beside` | `alone_s`, `beside_s`, `chunks`, `chunks_s`, `prefill_alone_s`, `prefill_beside_s` | ours |
| `beam` | `prompts`, `items` (lists of ids), `width`, `together` | `prefill_s`, `levels_s`, `calls`, `total_s`, `found` | ours |
| `roll_outs` | `prompts`, `group` (answers to each), `new_tokens`, `seed` | `total_s`, `tokens` | ours, hf |
| `rss` | `vocabulary`, `longest_prompt`, `new_tokens`, `at` (numbers of requests) | `rss_bytes` (one per entry of `at`) | ours |
| `score` | `texts` (pairs of prompt and continuation) | `logprobs` (one list a text) | ours |

- `generate`: all prompts are handed over at once. `first_s` runs until every row has its first token; `rest_s` from
  then until the last token of all, in which time `rest_tokens` tokens were written. `new_tokens` = 1 measures prefill;
  a larger number measures decoding as `rest_tokens / rest_s`, whatever the engine does meanwhile with rows that are
  ahead of others. Making an engine's per-batch state (genai's generator) is outside the clock. `last`: the rows' last
  tokens, which show that the engines computed the same.
- `trace`: requests arrive `at_s` after the start. Continuous: each is handed over when it arrives. Static: up to
  `static_rows` that have arrived are handed over together, and the next ones only when all of these have ended;
  `padded`: each of them generates as many tokens as the longest, of which only its own are counted.
- `gap`: `prompt_alone` is read alone; then `rows` decode, each `warm_tokens` alone, and on while `prompt_beside` is
  read. `alone_s`, `beside_s`: all rows' times between two tokens, before that and during it; `chunks`, `chunks_s`: the
  pieces in which `prompt_beside` was read and what they took, as the engine counts.
- `beam`: `prefill_s` and `levels_s` (in `calls` steps) are the engine's own count of the time of these calls, `total_s`
  is all of it; `found`: numbers of the items of each search, best first.
- `roll_outs`: sampled at temperature 1, all prompts handed over at once, `group` answers of `new_tokens` each.
- `rss`: short requests, 8 at a time, resident memory after so many of them.
"""

import json
import os
import signal
import subprocess
import sys


def serve(engine, facts, operations):
    """The worker's side: `operations` maps an op to a function from request to answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    print(json.dumps({"ready": engine, **facts}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request["op"]](request)
        except Exception as error:  # the orchestrator decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The orchestrator's side. Outside of `ask` the process is stopped, so that it takes no time from the others."""

    def __init__(self, name, command, log, environment=None):
        self.name = name
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "a"),
            text=True, env={**os.environ, **(environment or {})})
        self.log = log
        self.facts = self._answer()
        self._signal(signal.SIGSTOP)

    def ask(self, op, **fields):
        """One request; the answer, or the end of the program with what the worker said."""
        self._signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        if "error" in answer:
            sys.exit(f"bench-llm: {self.name} could not {op}: {answer['error']}")
        return answer

    def close(self):
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench-llm: {self.name} ended with code {self.process.wait()}; its log is {self.log}")
        return json.loads(line)

    def _signal(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)
