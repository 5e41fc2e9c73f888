"""A taiji service as a child process, for the scripts that measure it. Standard library only."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def exchange(port, method, path, body=None, timeout=30):
    """One call of a port of this machine, JSON out; its status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Service:
    """Starts `taiji serve`; use as a context manager. `store` is a folder or a url; `settings` are TAIJI__SECTION__KEY overrides."""

    def __init__(self, binaries, store, bundle, log, engine="onnx", **settings):
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.binaries = binaries
        store = store if "://" in str(store) else f"embedded:{store}"
        command = [f"{binaries}/taiji", "serve", "--listen", f"127.0.0.1:{self.port}", "--engine", engine]
        command += ["--admin-listen", f"127.0.0.1:{self.admin_port}", "--store", store, "--bundle", bundle]
        self.log = open(log, "w")
        self.child = subprocess.Popen(command, env={**os.environ, **settings}, stderr=self.log)

    def __enter__(self):
        self.until(lambda: self.ready(), 120, "the service did not become ready; see " + self.log.name)
        return self

    def __exit__(self, *_):
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(30)
        self.log.close()
        if code != 0:
            raise SystemExit(f"the service ended with {code}; see {self.log.name}")

    def until(self, condition, seconds, complaint):
        deadline = time.time() + seconds
        while not condition():
            if self.child.poll() is not None:
                raise SystemExit(f"the service ended with {self.child.returncode}; see {self.log.name}")
            if time.time() > deadline:
                raise SystemExit(complaint)
            time.sleep(0.1)

    def ready(self):
        try:
            return self.admin("/readyz")[0] == 200
        except OSError:
            return False

    def admin(self, path):
        return exchange(self.admin_port, "GET", path)

    def metric(self, name):
        """Sum over all series of a metric."""
        total = 0.0
        for line in self.admin("/metrics")[1].splitlines():
            if line.startswith(name) and line[len(name)] in " {":
                total += float(line.rsplit(" ", 1)[1])
        return total

    def call(self, method, path, body=None):
        status, text = exchange(self.port, method, path, body, timeout=60)
        if status >= 300:
            raise SystemExit(f"{method} {path} answered {status}: {text[:300]}")
        return json.loads(text)

    def features(self, users, groups):
        """Columns for any number of users, in calls of 500."""
        parts = [self.call("POST", "/v1/features", {"users": users[at : at + 500], "groups": groups})
                 for at in range(0, len(users), 500)]
        return parts

    def row(self, user, groups):
        return self.call("GET", f"/v1/users/{urllib.parse.quote(user, safe='')}/features?groups={groups}")

    def feed(self, events, items=None, rate=0, quiet=True):
        command = [f"{self.binaries}/taiji", "feed", "--file", events, "--http", self.url, "--rate", str(rate)]
        command += ["--items", items] if items else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        if not quiet:
            print(done.stdout, end="")
        return done.stdout

    def fresh(self, users):
        """Users whose features have seen every event."""
        count = 0
        for part in self.features(users, ["intra"]):
            count += sum(status == "PRESENT" for status in part["status"])
        return count

    def idle(self):
        """Nobody waits and nobody is being refreshed; the numbers are up to a second old, so it must be so twice."""
        for look in range(2):
            if look:
                time.sleep(1.5)
            if self.metric("taiji_queue_users") != 0 or self.metric("taiji_queue_leased") != 0:
                return False
        return True
