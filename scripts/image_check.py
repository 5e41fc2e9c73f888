"""Tries an image without an engine: what it holds, then one event's way through it, as its user, with `/` read-only. Standard library only.

    image_check.py ROOT BASE BASE_BYTES BYTES     ROOT: what `scripts/image.sh root` wrote; called by `scripts/image.sh check`
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from container import Container, container, expect

# What we may add to the base, in bytes.
LIMIT = 170_000_000
BUNDLE = "models/demo/1"
PROGRAMS = ["/opt/taiji/taiji", "/opt/taiji/taiji-trainer"]


def check_size(base, base_bytes, all_bytes):
    added = all_bytes - base_bytes
    print(f"image-check: base {base} {base_bytes / 1e6:.0f} MB, ours {added / 1e6:.1f} MB of at most {LIMIT / 1e6:.0f}")
    expect(added <= LIMIT, f"the image adds {added / 1e6:.1f} MB to its base, the limit is {LIMIT / 1e6:.0f}")


def check_configuration(root):
    config = json.loads(Path(f"{root}.json").read_text())
    expect(config["User"] == "10001:10001", f"the image's user is {config['User']!r}")
    expect(config["Entrypoint"] == ["/opt/taiji/taiji"] and config["Cmd"] == ["serve"], "entrypoint or command are others")
    expect(config.get("Healthcheck", {}).get("Test") == ["CMD", "/opt/taiji/healthcheck", "/livez"], "there is no healthcheck")
    labels = config["Labels"]
    version = re.search(r'^version = "(.*)"', Path("Cargo.toml").read_text(), re.M).group(1)
    expect(labels["org.opencontainers.image.version"] == version, f"the label says version {labels['org.opencontainers.image.version']!r}")
    expect(labels["org.opencontainers.image.licenses"] == "Apache-2.0", "the licence's label is another")


def check_files(root):
    for place in ["usr/bin", "usr/local/bin", "opt"]:
        found = [str(path) for path in Path(root, place).rglob("*python*")]
        expect(not found, f"the image holds Python: {found}")
    foreign = [str(path) for path in Path(root, "opt/taiji").iterdir() if path.stat().st_uid != 0 or path.stat().st_mode & 0o022]
    expect(not foreign, f"the image's user may change {foreign}")
    expect(not any(Path(root, "bundle").iterdir()), "the image holds a bundle")


def check_libraries(root):
    """What the programs are linked to is there, and is what docker/libraries.txt lists."""
    library = next(Path(root, "opt/taiji").glob("libonnxruntime.so.*")).name
    found = set()
    for program in PROGRAMS + [f"/opt/taiji/{library}"]:
        for line in container(root, "ldd", program).splitlines():
            expect("not found" not in line, f"{program}: {line.strip()}")
            found.add(Path(line.split()[0]).name)
    listed = set(Path("docker/libraries.txt").read_text().split())
    expect(found == listed, f"libraries: not in docker/libraries.txt {sorted(found - listed)}, listed but not used {sorted(listed - found)}")
    print(f"image-check: {len(found)} shared libraries, as listed")


def check_confinement(root):
    text = container(root, "bash", "-c", "id -u; grep ' / ' /proc/mounts | tail -n 1; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; touch /tmp/x")
    expect(text.startswith("10001\n"), f"the image's user is not the one that runs: {text}")
    expect(re.search(r" / \S+ ro[, ]", text), f"/ can be written to: {text}")
    expect(re.search(r"CapEff:\s+0+\n", text) and re.search(r"NoNewPrivs:\s+1", text), f"the image's user has rights: {text}")


def check_service(root):
    """Event in, refresh, features read; then a clean end."""
    data = Path(".cache/image/data")
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    os.chown(data, 10001, 10001)
    service = Container(root, [f"{BUNDLE}:/bundle:ro", f"{data}:/data"], ".cache/image/serve.log")
    try:
        service.until_ready()
        container(root, "-e", service.admin, "/opt/taiji/healthcheck", "/livez")
        service.an_event()
        service.stop()
    finally:
        service.child.kill()
        service.child.wait()
    gone = subprocess.run(["scripts/image_run.sh", root, "-e", service.admin, "/opt/taiji/healthcheck", "/livez"], stderr=subprocess.DEVNULL)
    expect(gone.returncode != 0, "the healthcheck is well where nothing serves")


def main():
    root, base, base_bytes, all_bytes = sys.argv[1:]
    check_size(base, int(base_bytes), int(all_bytes))
    check_configuration(root)
    check_files(root)
    check_confinement(root)
    check_libraries(root)
    for program in PROGRAMS:
        container(root, program, "--version")
    check_service(root)


main()
