"""Feast's own server over a Redis of its own, as a child process, for `make bench-read`.

In: the environment of requirements.txt, a folder, a Redis program, how many users. Out: the addresses of a server with one worker and of
one with two. Its view has the features that taiji shows as `taiji_intra`, with values of the same size.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
SOON = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Feast:
    """Use as a context manager; `urls` are the two servers'."""

    def __init__(self, venv, folder, redis, users):
        self.venv, self.folder, self.children = pathlib.Path(venv).resolve(), pathlib.Path(folder).resolve(), []
        self.environment = {**os.environ, "FEAST_USAGE": "False", "OPENBLAS_NUM_THREADS": "1"}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.log = open(self.folder / "log", "w")
        try:
            self.start(redis, users)
        except BaseException:
            self.__exit__()
            raise

    def start(self, redis, users):
        port = free_port()
        command = [redis, "--port", str(port), "--save", "", "--dir", str(self.folder), "--logfile", "redis.log"]
        self.children.append(subprocess.Popen(command, stdout=self.log, stderr=self.log))
        self.until(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, "Feast's Redis")
        shutil.copy(HERE / "features.py", self.folder)
        (self.folder / "feature_store.yaml").write_text(
            f"project: taiji\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
            f"online_store:\n  type: redis\n  connection_string: 127.0.0.1:{port}\n")
        self.run("feast", "apply")
        self.run("python", "features.py", str(users))
        self.urls = [self.serve(workers) for workers in (1, 2)]

    def run(self, program, *arguments):
        done = subprocess.run([self.venv / "bin" / program, *arguments], cwd=self.folder, env=self.environment,
                              stdout=self.log, stderr=self.log)
        if done.returncode != 0:
            sys.exit(f"bench-read: {program} {' '.join(arguments)} ended with {done.returncode}; see {self.log.name}")

    def serve(self, workers):
        port = free_port()
        # By default a worker is replaced after 1,000 requests, which would count against Feast; and it logs every call.
        command = [self.venv / "bin/feast", "serve", "--port", str(port), "--workers", str(workers), "--no-access-log",
                   "--max-requests", "0", "--max-requests-jitter", "0"]
        self.children.append(subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=self.log, stderr=self.log))
        url = f"http://127.0.0.1:{port}"
        self.until(lambda: urllib.request.urlopen(f"{url}/health", timeout=5).status == 200, f"feast serve --workers {workers}")
        return url

    def until(self, is_so, what):
        deadline = time.monotonic() + SOON
        while True:
            try:
                if is_so():
                    return
            except OSError:
                pass
            if self.children[-1].poll() is not None:
                sys.exit(f"bench-read: {what} ended with {self.children[-1].returncode}; see {self.log.name}")
            if time.monotonic() > deadline:
                sys.exit(f"bench-read: {what} does not answer after {SOON} s; see {self.log.name}")
            time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.log.close()
