"""onnxruntime-genai as a worker (see `protocol.py`).

    genai_worker.py FOLDER THREADS SPINNING

FOLDER is what genai's own builder wrote; SPINNING is 1 (its default: threads wait busily between operators) or 0.
"""

import json
import sys
import time

import numpy
import onnxruntime_genai as genai

from protocol import serve


class Engine:
    def __init__(self, folder, threads, spinning):
        config = genai.Config(folder)
        options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": str(spinning)}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)

    def generate(self, prompts, new_tokens):
        ids = numpy.array(prompts, dtype=numpy.int32)
        length = ids.shape[1] + new_tokens
        params = genai.GeneratorParams(self.model)
        # As long as the shortest allowed text is the longest, no row stops early.
        params.set_search_options(do_sample=False, batch_size=len(prompts), min_length=length, max_length=length)
        generator = genai.Generator(self.model, params)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        last = [int(generator.get_sequence(row)[-1]) for row in range(len(prompts))]
        ended = time.perf_counter()
        written = len(generator.get_sequence(0))
        if written != length:
            raise RuntimeError(f"{written} tokens in a row instead of {length}")
        return {"first_s": first - started, "rest_s": ended - first, "rest_tokens": (new_tokens - 1) * len(prompts),
                "last": last}


engine = Engine(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
serve("genai", {"genai": genai.__version__, "spinning": int(sys.argv[3])},
      {"generate": lambda request: engine.generate(request["prompts"], request["new_tokens"])})
