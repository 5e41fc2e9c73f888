"""`make bench-gpu`: our LLM engine on an NVIDIA GPU, with a model shaped like DeepSeek-R1-Distill-Qwen-7B.

    gpu.py [--bandwidth GB_PER_S] [--work DIR]

The weights are random and made here. Parity: log-probabilities of the same text, GPU against the f32 engine on the
processor, on the model's first two layers with the full head. Speed: prefill and decode by batch, and the share of what
the memory's bandwidth allows (every decode step reads all weights but the embedding once).

ONNX Runtime's GPU build is taken from ORT_DYLIB_PATH, else installed with its CUDA libraries from the Python package
registry. Needs 75 GB of disk, and numpy. Without a GPU it says so and ends with code 69.
"""

import argparse
import os
import pathlib
import random
import shutil
import subprocess
import sys

BEGIN, END = "<!-- bench-gpu:begin -->", "<!-- bench-gpu:end -->"
ORT = "1.31.1"
BATCHES = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 256, 128, 5
# GB/s by the makers' data sheets.
BANDWIDTHS = {"H200": 4800, "H100 PCIe": 2000, "H100": 3350, "A100-SXM4-80GB": 2039, "A100": 1555, "L40S": 864,
              "L4": 300, "A10": 600, "RTX 4090": 1008, "RTX 3090": 936}


def find_gpu():
    """Name of the first GPU, or the end of the program."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        found = None
    if found is None or found.returncode != 0:
        print("no GPU: not measured")
        sys.exit(69)
    return found.stdout.strip()


def gpu_runtime(work):
    """Environment in which the worker finds ONNX Runtime's GPU build and CUDA."""
    if os.environ.get("ORT_DYLIB_PATH"):
        return {}
    venv = work / "gpu-venv"
    if not (venv / "installed").is_file():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "--quiet", f"onnxruntime-gpu[cuda,cudnn]=={ORT}"], check=True)
        (venv / "installed").touch()
    [site] = venv.glob("lib/python*/site-packages")
    folders = [str(folder.absolute()) for folder in site.glob("nvidia/*/lib")]
    path = ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])
    return {"ORT_DYLIB_PATH": str((site / f"onnxruntime/capi/libonnxruntime.so.{ORT}").absolute()),
            "LD_LIBRARY_PATH": path}


def export(trainer, checkpoint, folder, precision):
    if not (folder / "graph.onnx").is_file():
        command = [trainer, "export", "--checkpoint", checkpoint, "--out", folder, "--precision", precision,
                   "--max-positions", "4096"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return folder


def parity(start, folders, vocabulary):
    """Rows of the table: how far the GPU's log-probabilities are from the processor's f32 ones."""
    generator = random.Random(1)
    texts = [[[generator.randrange(vocabulary) for _ in range(count)] for count in (64, 64)] for _ in range(4)]
    with start(folders["f32"], "cpu") as worker:
        wanted = worker.ask("score", texts=texts)["logprobs"]
    rows = []
    for precision in ("f16", "bf16"):
        with start(folders[precision], "cuda") as worker:
            found = worker.ask("score", texts=texts)["logprobs"]
        errors = [abs(one - other) for rows in zip(wanted, found) for one, other in zip(*rows)]
        rows.append(f"| parity, 2 layers, {precision}: log-probability, largest and mean difference from f32 | "
                    f"{max(errors):.4f} | {sum(errors) / len(errors):.4f} | |")
    return rows


def speed(start, folder, vocabulary, provider, bound_steps):
    """Rows of the table: tokens a second by batch; medians of ROUNDS."""
    generator, rows = random.Random(2), []
    with start(folder, provider) as worker:
        for batch in BATCHES:
            prompts = [[generator.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]
            prefill, decode = [], []
            for number in range(ROUNDS + 1):
                first = worker.ask("generate", prompts=prompts, new_tokens=1)["first_s"]
                answer = worker.ask("generate", prompts=prompts, new_tokens=NEW_TOKENS)
                if number > 0:  # the first round warms
                    prefill.append(batch * PROMPT_TOKENS / first)
                    decode.append(answer["rest_tokens"] / answer["rest_s"])
            middle = sorted(decode)[ROUNDS // 2]
            share = f"{middle / batch / bound_steps:.0%}" if bound_steps else "unknown"
            rows.append(f"| {provider}, batch {batch} | {sorted(prefill)[ROUNDS // 2]:,.0f} | {middle:,.0f} | {share} |")
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(prog="bench-gpu")
    parser.add_argument("--bandwidth", type=float, help="GB/s of the GPU's memory; default: its data sheet")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".cache/bench-gpu"))
    parser.add_argument("--binaries", default=os.environ.get("CARGO_TARGET_DIR", "target") + "/release")
    options = parser.parse_args()
    gpu = find_gpu()

    # Only here: these need numpy, and a machine without a GPU need not have it.
    import make_model
    import prepare
    import report
    from protocol import Worker

    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    environment, program = gpu_runtime(work), prepare.build_worker()

    def start(folder, provider):
        command = [program, folder, os.cpu_count(), max(BATCHES), PROMPT_TOKENS + NEW_TOKENS, provider]
        return Worker(f"{folder.name} on {provider}", command, work / "workers.log", environment)

    trainer = f"{options.binaries}/taiji-trainer"
    cut = make_model.make("r1-7b-cut", work / "cut")
    folders = {name: export(trainer, cut, work / f"cut-{name}", name) for name in ("f32", "f16", "bf16")}
    shape = make_model.SHAPES["r1-7b"]
    lines = ["| what | prefill, tokens/s | decode, tokens/s | share of the bandwidth bound |", "|---|---|---|---|"]
    accuracy = parity(start, folders, shape["vocabulary"])

    folder = export(trainer, make_model.make("r1-7b", work / "r1"), work / "r1-bf16", "bf16")
    bandwidth = options.bandwidth or next((value for name, value in BANDWIDTHS.items() if name in gpu), None)
    weights = sum(dims[0] * (dims[1] if len(dims) > 1 else 1) for name, dims in make_model.tensors(shape)
                  if "embed_tokens" not in name)
    bound_steps = bandwidth * 1e9 / (2 * weights) if bandwidth else None
    for provider in ("cuda", "cuda-graphs"):
        lines += speed(start, folder, shape["vocabulary"], provider, bound_steps)

    head = f"`make bench-gpu` at commit {report.commit()}; {gpu}, {bandwidth or 'unknown'} GB/s; {report.machine()}; "
    head += f"bf16, prompts of {PROMPT_TOKENS}, {NEW_TOKENS} new tokens, medians of {ROUNDS}."
    lines = [head, "", *lines, "", "| what | largest | mean | |", "|---|---|---|---|", *accuracy]
    text = report.PAGE.read_text()
    before, rest = text.split(BEGIN)
    report.PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])
    print("\n".join(lines))


main()
