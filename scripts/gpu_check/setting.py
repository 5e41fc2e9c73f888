"""Where a check runs: programs, folders, sizes, and the engines of both sides."""

import dataclasses
import os
import pathlib
import subprocess
import time

import make_model
from protocol import Worker

# DeepSeek-R1-Distill-Qwen's shapes; the cut ones have two layers and a small vocabulary.
CUT = dict(layers=2, hidden=1536, inner=8960, heads=12, kv_heads=2, vocabulary=16384, positions=4096, epsilon=1e-6)
make_model.SHAPES |= {
    "r1-1.5b-cut": CUT,
    "r1-1.5b": {**CUT, "layers": 28, "vocabulary": 151936, "dtype": "BF16"},
}


@dataclasses.dataclass
class Setting:
    provider: str
    full: bool
    programs: pathlib.Path
    work: pathlib.Path
    encoder: pathlib.Path | None
    ends: float

    @property
    def on_gpu(self):
        return self.provider == "cuda"

    @property
    def half(self):
        """Number formats of two bytes that the provider computes with; the processor has no bf16."""
        return ("f16", "bf16") if self.on_gpu else ("f16",)

    @property
    def shape(self):
        """Of the model that proofs 1 and 4 look at."""
        return "r1-1.5b-cut" if self.full else "tiny"

    @property
    def vocabulary(self):
        return make_model.SHAPES[self.shape]["vocabulary"]

    def left(self):
        """Seconds until the check must be over."""
        return self.ends - time.monotonic()

    def run(self, *command, **more):
        """A program's standard output; its error text where it fails."""
        command = [str(part) for part in command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, self.left()), **more)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
        return done.stdout

    def checkpoint(self, name, repeated=False):
        return make_model.make(name, self.work / (f"{name}-repeated" if repeated else name), repeated=repeated)

    def export(self, checkpoint, name, *options):
        """A folder that the engine loads."""
        folder = self.work / f"{checkpoint.name}-{name}"
        if not (folder / "graph.onnx").is_file():
            self.run(self.programs / "taiji-trainer", "export", "--checkpoint", checkpoint, "--out", folder, *options)
        return folder

    def engine(self, folder, provider, rows=8, slots=512, chunk=256):
        command = [self.programs / "llm_worker", folder, min(8, os.cpu_count()), rows, slots, provider, chunk]
        return Worker(f"{folder.name} on {provider}", command, self.work / "workers.log")


def log_end(setting):
    """Last words of the engines, for an error."""
    log = setting.work / "workers.log"
    return log.read_text()[-500:] if log.is_file() else ""
