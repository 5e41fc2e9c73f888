"""Tries an image without an engine: what it holds, then one event's way through it, as its user, with `/` read-only. Standard library only.

    image_check.py ROOT BASE BASE_BYTES BYTES     ROOT: what `scripts/image.sh root` wrote; called by `scripts/image.sh check`
"""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from service import free_port

# What we may add to the base, in bytes.
LIMIT = 170_000_000
BUNDLE = "models/demo/1"
PROGRAMS = ["/opt/taiji/taiji", "/opt/taiji/taiji-trainer"]


def expect(condition, complaint):
    if not condition:
        sys.exit(f"image-check: {complaint}")


def container(root, *arguments):
    """A command in the image, and what it prints."""
    done = subprocess.run(["scripts/image_run.sh", root, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    expect(done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


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


class Container:
    """`taiji serve` in the image, process 1 of its own, on free ports of this machine."""

    def __init__(self, root, data, log):
        self.port, self.admin_port = free_port(), free_port()
        self.admin = f"TAIJI__SERVER__ADMIN_LISTEN=0.0.0.0:{self.admin_port}"
        command = ["scripts/image_run.sh", root, "-v", f"{BUNDLE}:/bundle:ro", "-v", f"{data}:/data"]
        command += ["-e", f"TAIJI__SERVER__LISTEN=0.0.0.0:{self.port}", "-e", self.admin]
        self.log = log
        self.child = subprocess.Popen(command, stderr=open(log, "w"))

    def call(self, method, path, body=None, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        try:
            headers = {"content-type": "application/json"}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def until_ready(self, seconds=120):
        deadline = time.time() + seconds
        while time.time() < deadline:
            expect(self.child.poll() is None, f"the service ended with {self.child.returncode}; see {self.log}")
            try:
                if self.call("GET", "/readyz", port=self.admin_port)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        expect(False, f"the service did not become ready; see {self.log}")

    def stop(self):
        """SIGTERM to the service itself; its exit code."""
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        return self.child.wait(30)


def check_service(root):
    """Event in, refresh, features read; then a clean end."""
    data = Path(".cache/image/data")
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    os.chown(data, 10001, 10001)
    service = Container(root, data, ".cache/image/serve.log")
    try:
        service.until_ready()
        container(root, "-e", service.admin, "/opt/taiji/healthcheck", "/livez")

        now = int(time.time() * 1000)
        events = [{"user_id": "you", "item_id": "i1", "action": action, "ts_ms": now - age} for action, age in [("click", 1000), ("purchase", 0)]]
        status, text = service.call("POST", "/v1/events", {"events": events})
        expect(status == 202 and json.loads(text)["accepted"] == 2, f"events were answered {status}: {text}")
        status, text = service.call("POST", "/v1/users/you/refresh", {"wait_ms": 30000})
        expect(status == 200, f"the refresh was answered {status}: {text}")
        status, text = service.call("POST", "/v1/features", {"users": ["you", "nobody"], "groups": ["intra"]})
        answer = json.loads(text)
        codes = answer["features"]["intra.sparse_ids"]
        expect(answer["status"] == ["PRESENT", "MISSING"] and all(codes[0]) and not any(codes[1]), f"features were answered {status}: {text}")
        print(f"image-check: an event became features {codes[0]}")
        started = time.time()
        code = service.stop()
        expect(code == 0, f"SIGTERM ended the service with {code}; see {service.log}")
        print(f"image-check: SIGTERM ended it with 0 after {time.time() - started:.1f} s")
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
