"""Makes what the benchmark runs: checkpoints, our exports, genai's own exports, and the command lines of the workers.

In: a folder for models and the built programs. Out: folders of models, made once (ours anew each time: the exporter may
have changed). Called by `run.py`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import make_model

HERE = pathlib.Path(__file__).parent
THREADS = 2
# The peer at its best: logits of the last position only, as our graph computes them.
GENAI = {
    "f32": ["-p", "fp32", "--extra_options", "prune_lm_head=true"],
    "int4-128": ["-p", "int4", "--extra_options", "prune_lm_head=true", "block_size=128"],
    "int4-32": ["-p", "int4", "--extra_options", "prune_lm_head=true"],
}
OURS = {
    "f32": ["--precision", "f32"],
    "int4-128": ["--precision", "int4", "--block", "128", "--accuracy-level", "4"],
}


class Models:
    """Folders by kind, made on first use."""

    def __init__(self, work, shape, programs):
        self.work, self.shape, self.programs = pathlib.Path(work), shape, programs
        self.exported = set()

    def checkpoint(self, shape=None):
        shape = shape or self.shape
        return make_model.make(shape, self.work / shape)

    def ours(self, kind, shape=None, positions=2048, more=()):
        """A folder that `taiji` loads; exported once in this run. `more`: the exporter's options for more flavours."""
        shape = shape or self.shape
        folder = self.work / f"{shape}-ours-{kind}-{positions}{'-all' if more else ''}"
        if folder not in self.exported:
            shutil.rmtree(folder, ignore_errors=True)
            command = [self.programs["trainer"], "export", "--checkpoint", self.checkpoint(shape), "--out", folder,
                       "--max-positions", positions, *OURS[kind], *more]
            quietly([str(part) for part in command], self.work / "export.log")
            self.exported.add(folder)
        return folder

    def genai(self, kind):
        """A folder that onnxruntime-genai loads, written by its own builder."""
        checkpoint = self.checkpoint()
        return build_genai(kind, checkpoint, self.work / f"{self.shape}-genai-{kind}", (checkpoint / "made.json").read_text())


def build_genai(kind, checkpoint, folder, made_of):
    """Genai's export of a checkpoint, made again when `made_of` (a text that names its contents) has changed."""
    wanted = json.dumps([GENAI[kind], made_of])
    made = folder / "made.json"
    if made.is_file() and made.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", checkpoint, "-o", folder,
               "-c", folder.parent / "hf", "-e", "cpu", *GENAI[kind]]
    quietly([str(part) for part in command], folder.parent / "builder.log")
    made.write_text(wanted)
    return folder


def quietly(command, log):
    with open(log, "a") as out:
        code = subprocess.run(command, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode
    if code != 0:
        sys.exit(f"bench-llm: {' '.join(command)} ended with code {code}; its log is {log}")


def build_worker():
    """The path of our worker, built if needed."""
    command = ["cargo", "build", "--release", "--locked", "--workspace", "--bench", "llm_worker", "--message-format=json"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit("bench-llm: our worker does not build")
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "llm_worker" and message.get("executable"):
            return message["executable"]
    sys.exit("bench-llm: cargo names no executable of llm_worker")


def our_command(programs, folder, max_rows, max_len):
    return [programs["worker"], folder, THREADS, max_rows, max_len]


def genai_command(folder, spinning):
    return [sys.executable, HERE / "genai_worker.py", folder, THREADS, int(spinning)]


def hf_command(folder):
    return [sys.executable, HERE / "hf_worker.py", folder, THREADS]
