"""Proof 2: `taiji serve` with the LLM on the GPU answers what it answers on the processor.

The demo's bundle in f32 on the processor beside the same LLM in f16 on the GPU, as a bundle of its own with its own probes; the encoder on
the processor in both. Both get the same events; then every user is refreshed and read.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import shutil
import time

from service import Service

PROOF = 2
DEMO = pathlib.Path("models/demo/1")
# Nats a token; of the probes, which f16 holds more closely.
PROBE_BOUND = 0.05


def listed(bundle, *names):
    """Notes what files of a bundle are now."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in names:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.write_text(json.dumps(manifest))


def plain_bundle(setting):
    """The demo's bundle; with the encoder of another checkpoint where one is given."""
    bundle = setting.work / "bundle-f32"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(DEMO, bundle)
    if setting.encoder:
        shutil.rmtree(bundle / "encoder", ignore_errors=True)
        setting.run(setting.programs / "taiji-trainer", "export", "--checkpoint", setting.encoder, "--out", bundle / "encoder")
        path = bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"] = {name: file for name, file in manifest["files"].items() if not name.startswith("encoder/")}
        manifest["external"] = {}
        path.write_text(json.dumps(manifest))
        listed(bundle, *(f"encoder/{file.name}" for file in (bundle / "encoder").iterdir()))
    return bundle


def half_bundle(setting, plain):
    """The same with the LLM in f16, and what that says on the processor as probes."""
    bundle, llm = setting.work / "bundle-f16", "llm/reason"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(plain, bundle)
    checkpoint, graphs = setting.work / "demo-checkpoint", setting.work / "demo-f16"
    for folder in (checkpoint, graphs):
        shutil.rmtree(folder, ignore_errors=True)
    trainer = setting.programs / "taiji-trainer"
    setting.run(trainer, "convert", "bundle", DEMO, "--out", checkpoint)
    setting.run(trainer, "export", "--checkpoint", checkpoint, "--out", graphs, "--precision", "f16", "--max-positions", "416")
    files = ("graph.onnx", "graph.onnx.data")
    for file in files:
        shutil.copy(graphs / file, bundle / llm / file)
    path = bundle / "probe.json"
    probe = json.loads(path.read_text())
    with setting.engine(graphs, "cpu", rows=4, slots=416) as engine:
        texts = [(one["prompt"], one["continuation"]) for one in probe["llm"]]
        for one, scores in zip(probe["llm"], engine.ask("score", texts=texts)["logprobs"]):
            one["logprobs"] = scores
    probe["max_logprob_difference"] = PROBE_BOUND
    path.write_text(json.dumps(probe))
    listed(bundle, "probe.json", *(f"{llm}/{file}" for file in files))
    return bundle


def answers(setting, bundle, provider, sample, users):
    """What every user reads after a refresh, and the seconds from the first event until all are refreshed."""
    store = setting.work / f"store-{bundle.name}"
    shutil.rmtree(store, ignore_errors=True)
    # Whoever is asked for is refreshed, however many that are.
    more = {"TAIJI__ENGINE__PROVIDER": provider, "TAIJI__REFRESH__READER_REFRESHES": "100000",
            "TAIJI__REFRESH__READER_REFRESHES_PER_KEY": "100000"}
    with Service(setting.programs, store, bundle, setting.work / f"{bundle.name}.log", **more) as service:
        started = time.monotonic()
        service.feed(sample / "events.jsonl")
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda user: service.call("POST", f"/v1/users/{user}/refresh", {"wait_ms": 30_000}), users))
            taken = time.monotonic() - started
            return dict(zip(users, pool.map(lambda user: service.row(user, "intra,text"), users))), taken


def run(setting, figures):
    count = 200 if setting.full else 12
    sample = setting.work / "sample"
    setting.run(setting.programs / "taiji-trainer", "synth", "--world", "reason", "--out", sample, "--users", str(count), "--seed", "7")
    users = sorted({json.loads(line)["user_id"] for line in open(sample / "events.jsonl")})[:count]
    plain = plain_bundle(setting)
    half = half_bundle(setting, plain)
    wanted, slow = answers(setting, plain, "cpu", sample, users)
    found, quick = answers(setting, half, setting.provider, sample, users)

    group = lambda side, user, name: side[user]["groups"][name]
    same = [user for user in users if group(wanted, user, "text")["answer"] == group(found, user, "text")["answer"]]
    alike = [user for user in same if group(wanted, user, "intra")["sparse_ids"] == group(found, user, "intra")["sparse_ids"]]
    figures.add(PROOF, "users", len(users))
    figures.add(PROOF, f"answers of f16 on {setting.provider} that are f32's on the processor", len(same) / len(users), least=0.98)
    figures.add(PROOF, "among these, codes that are the same", len(alike) / max(1, len(same)), least=1.0)
    figures.add(PROOF, "from the first event until all are refreshed, f32 on the processor", slow, "s")
    figures.add(PROOF, f"the same, f16 on {setting.provider}", quick, "s")
