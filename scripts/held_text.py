"""Plain English to judge rounded models on: paragraphs of README files of crates that Cargo.lock pins.

In: scripts/held_text.txt, cargo's folder of unpacked crates (`cargo fetch` fills it). Out: held.txt and calibration.txt in the folder
given; no crate is in both. Called by scripts/int4_check.sh, and by hand:

    python3 scripts/held_text.py FOLDER
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "scripts" / "held_text.txt"
SHORTEST = 120


def prose(text):
    """Paragraphs of plain sentences: no code, tables, headings, lists of links, licences."""
    text = re.sub(r"```.*?```|~~~.*?~~~", "\n\n", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    for part in re.split(r"\n\s*\n", text):
        if re.match(r"\s*(#|\||<|\[!|\[[^\]]*\]:|=|-{3}| {4}|\t)", part):
            continue
        part = re.sub(r"^\s*([-*+>]|\d+\.)\s+", "", part, flags=re.M)
        part = " ".join(part.split())
        part = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", part)
        part = re.sub(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", part)
        part = part.replace("`", "").replace("**", "")
        letters = sum(sign.isalpha() or sign == " " for sign in part)
        if len(part) < SHORTEST or letters < 0.92 * len(part):
            continue
        if not re.search(r"[\[\]<>|#{}=]|https?:|::|icens|opyright", part):
            yield part


def registries():
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    return list(home.glob("registry/src/*"))


def find(crate):
    return next((folder / crate for folder in registries() if (folder / crate).is_dir()), None)


def main(out):
    rows = [line.split() for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    if not all(find(f"{name}-{version}") for _, name, version, _, _ in rows):
        subprocess.run(["cargo", "fetch", "--locked"], cwd=ROOT, check=True)
    seen, texts = set(), {"held": [], "calibration": []}
    for kind, name, version, path, sha256 in rows:
        folder = find(f"{name}-{version}")
        if folder is None:
            sys.exit(f"held_text: {name} {version} is not among the fetched crates: is it still in Cargo.lock?")
        content = (folder / path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            sys.exit(f"held_text: {folder / path} is not the file listed in {LIST.name}")
        for part in prose(content.decode()):
            if part not in seen:
                seen.add(part)
                texts[kind].append(part)
    out.mkdir(parents=True, exist_ok=True)
    for kind, parts in texts.items():
        (out / f"{kind}.txt").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
