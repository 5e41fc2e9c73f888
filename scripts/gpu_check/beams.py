"""Proof 4: beams of 20 and 256 over sequences of three tokens, on the GPU beside f32 on the processor."""

import random
import statistics

PROOF = 4
WIDTHS = (20, 256)


def run(setting, figures):
    checkpoint = setting.checkpoint(setting.shape)
    generator, codes = random.Random(4), 256
    items = list({tuple(generator.randrange(codes) + 3 + (level * codes if setting.full else 0) for level in range(3)) for _ in range(5_000)})
    prompts = [[generator.randrange(3, setting.vocabulary) for _ in range(200)] for _ in range(4)]
    flavours = ["--flavour", "gqa,tree"]
    sides = (
        ("cpu", "f32 on the processor", setting.export(checkpoint, "f32-beams", *flavours)),
        (setting.provider, f"f16 on {setting.provider}", setting.export(checkpoint, "f16-beams", "--precision", "f16", *flavours)),
    )
    for width in WIDTHS:
        found = []
        for provider, side, folder in sides:
            with setting.engine(folder, provider, slots=1024) as engine:
                asked = dict(prompts=prompts, items=items, width=width, together=False)
                engine.ask("beam", **asked)
                answer = engine.ask("beam", **asked)
            found.append([set(one) for one in answer["found"]])
            figures.add(PROOF, f"beam of {width}, {side}: levels of one search", 1e3 * answer["levels_s"] / len(prompts), "ms")
        shared = [len(one & other) / width for one, other in zip(*found)]
        figures.add(PROOF, f"beam of {width}: share of the items that both find", statistics.mean(shared), least=0.95)
