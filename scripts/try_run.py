"""Runs `make run` as a newcomer would: waits for its curl lines, sends what they say, presses Ctrl-C, checks the exit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request


def send(line):
    """The request of a printed curl line (curl itself may not be there)."""
    url = re.search(r"http://[^' ]+", line).group()
    body = re.search(r"-d '(.*)'$", line)
    headers = {"content-type": "application/json"} if body else {}
    request = urllib.request.Request(url, body.group(1).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def main():
    # Started in the background this process may ignore Ctrl-C, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(["make", "run"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    curls = []
    for line in child.stdout:
        print(line, end="", flush=True)
        if line.strip().startswith("curl"):
            curls.append(line.strip())
        if line.startswith("Ctrl-C"):
            break
    if len(curls) != 3:
        sys.exit(f"make run printed {len(curls)} curl lines instead of 3")
    for curl in curls:
        print(json.dumps(send(curl))[:400], flush=True)
    # Ctrl-C reaches every process of the terminal's foreground group.
    os.killpg(child.pid, signal.SIGINT)
    started = time.time()
    code = child.wait(30)
    # make itself reports an interrupted recipe; what counts is that nothing is left running.
    print(f"make run ended with {code} after {time.time() - started:.1f} s")
    try:
        urllib.request.urlopen(re.search(r"http://[^/]+", curls[0]).group() + "/v1/features", timeout=2)
        sys.exit("the service still answers after Ctrl-C")
    except OSError:
        pass


main()
