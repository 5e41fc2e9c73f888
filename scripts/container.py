"""What is in an image, run without an engine (scripts/image_run.sh), for the scripts that check one. Standard library only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from service import exchange, free_port

NAME = Path(sys.argv[0]).stem.replace("_", "-")


def expect(condition, complaint):
    if not condition:
        sys.exit(f"{NAME}: {complaint}")


def container(root, *arguments):
    """A command in the image, and what it prints."""
    done = subprocess.run(["scripts/image_run.sh", root, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    expect(done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


class Container:
    """The service of an image, process 1 of its own, on free ports of this machine. `mounts`: as scripts/image_run.sh takes them."""

    def __init__(self, root, mounts, log):
        self.port, self.admin_port = free_port(), free_port()
        self.admin = f"TAIJI__SERVER__ADMIN_LISTEN=0.0.0.0:{self.admin_port}"
        command = ["scripts/image_run.sh", root, *(part for mount in mounts for part in ("-v", mount))]
        command += ["-e", f"TAIJI__SERVER__LISTEN=0.0.0.0:{self.port}", "-e", self.admin]
        self.log = log
        self.child = subprocess.Popen(command, stderr=open(log, "w"))

    def call(self, method, path, body=None, port=None):
        return exchange(port or self.port, method, path, body)

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

    def an_event(self):
        """One event's way: in, refresh, features read."""
        now = int(time.time() * 1000)
        events = [{"user_id": "you", "item_id": "i1", "action": action, "ts_ms": now - age} for action, age in [("click", 1000), ("purchase", 0)]]
        status, text = self.call("POST", "/v1/events", {"events": events})
        expect(status == 202 and json.loads(text)["accepted"] == 2, f"events were answered {status}: {text}")
        status, text = self.call("POST", "/v1/users/you/refresh", {"wait_ms": 30000})
        expect(status == 200, f"the refresh was answered {status}: {text}")
        status, text = self.call("POST", "/v1/features", {"users": ["you", "nobody"], "groups": ["intra"]})
        answer = json.loads(text)
        codes = answer["features"]["intra.sparse_ids"]
        expect(answer["status"] == ["PRESENT", "MISSING"] and all(codes[0]) and not any(codes[1]), f"features were answered {status}: {text}")
        print(f"{NAME}: an event became features {codes[0]}")

    def stop(self):
        """SIGTERM to the service itself; it must end well."""
        started = time.time()
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        code = self.child.wait(30)
        expect(code == 0, f"SIGTERM ended the service with {code}; see {self.log}")
        print(f"{NAME}: SIGTERM ended it with 0 after {time.time() - started:.1f} s")
