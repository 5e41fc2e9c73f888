"""`make soak`: half an hour of users who were never seen before, on Redis and on the embedded store at once: what does one cost the
service's memory, and does it end? Writes its section of docs/benchmarks.md.

The engine is the canned one; index, quantiser and store are real. Between a third and the end of the time a line is laid through
(users, resident memory) of each service; its slope is what a user costs.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from page import commit, machine, write_figures, write_section
from service import Service, free_port

BUNDLE = "models/demo/1"
# Most a user may cost the process: a vector (384 x f32), in the index's fresh part and, after a rebuild, once more while both stand;
# ids and the maps over them.
BOUND = 6 * 1024
# A call: so many new users of three events each, then a read of as many who came between one and two minutes ago.
USERS, EVENTS = 20, 3
CALLS_S = 2
# So many come in a minute.
MINUTE = 60 * CALLS_S * USERS


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def slope(points):
    """Least squares: bytes a user."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def events(first, now_ms):
    return [{"event_id": f"{user}-{nth}", "user_id": f"soak-{user}", "item_id": f"item-{(user * 7 + nth) % 500}",
             "action": "purchase" if nth == 0 else "click", "ts_ms": now_ms - 1000 * nth}
            for user in range(first, first + USERS) for nth in range(EVENTS)]


def run(services, seconds):
    points = {name: [] for name in services}
    users, calls, reads_missing, began = 0, 0, 0, time.time()
    look_at = began
    while time.time() - began < seconds:
        for service in services.values():
            answer = service.call("POST", "/v1/events", {"events": events(users, int(time.time() * 1000))})
            if answer["accepted"] != USERS * EVENTS:
                raise SystemExit(f"soak: {answer}")
            older = [f"soak-{user}" for user in range(max(users - 2 * MINUTE, 0), users - MINUTE, MINUTE // USERS)]
            for columns in service.features(older, ["intra"]):
                reads_missing += sum(status != "PRESENT" for status in columns["status"])
        users, calls = users + USERS, calls + 1
        if time.time() >= look_at:
            look_at += 10
            for name, service in services.items():
                points[name].append((users, resident(service.child.pid)))
        # An open loop: the next call's time does not depend on this one's.
        time.sleep(max(began + calls / CALLS_S - time.time(), 0))
    return users, points, reads_missing


def main():
    seconds = int(os.environ.get("SECONDS_EACH") or 1800)
    binaries = os.environ.get("CARGO_TARGET_DIR", "target") + "/release"
    work = pathlib.Path(tempfile.mkdtemp(prefix="taiji-soak-"))
    port = free_port()
    redis = subprocess.Popen(["redis-server", "--port", str(port), "--dir", str(work), "--appendonly", "yes", "--save", ""],
                             stdout=subprocess.DEVNULL)
    try:
        stores = {"Redis": f"redis://127.0.0.1:{port}", "embedded": work / "store"}
        settings = {"TAIJI__REFRESH__MIN_INTERVAL_MS": "0"}
        with Service(binaries, stores["Redis"], BUNDLE, work / "redis.log", "null", **settings) as on_redis, \
             Service(binaries, stores["embedded"], BUNDLE, work / "embedded.log", "null", **settings) as embedded:
            services = {"Redis": on_redis, "embedded": embedded}
            users, points, missing = run(services, seconds)
            errors = {name: service.metric("taiji_store_errors_total") for name, service in services.items()}
    finally:
        redis.send_signal(signal.SIGTERM)
        redis.wait(30)
    lines = [f"`make soak` at commit {commit()}, {time.strftime('%Y-%m-%d')}; {machine()}; {seconds / 60:.0f} minutes, {users:,} new users "
             f"of {EVENTS} events on each store, {CALLS_S * USERS} a second.", "",
             "| store | bytes a user (wanted) | resident at a third, MiB | at two thirds | at the end |", "|---|---|---|---|---|"]
    grew = {}
    for name, seen in points.items():
        later = seen[len(seen) // 3 :]
        grew[name] = slope(later)
        at = [seen[len(seen) // 3][1], seen[2 * len(seen) // 3][1], seen[-1][1]]
        lines.append(f"| {name} | {grew[name]:,.0f} (≤ {BOUND:,}) | " + " | ".join(f"{size / 2**20:.0f}" for size in at) + " |")
    lines += ["", f"Store errors: {json.dumps(errors)}. Users older than a minute without features: {missing}."]
    print("\n".join(lines))
    if seconds >= 1800:
        write_section("soak", "\n".join(lines))
        write_figures("soak", "make soak", [(f"{name}: resident memory of a new user", "bytes", [size]) for name, size in grew.items()])
    shutil.rmtree(work)
    if any(bytes_a_user > BOUND for bytes_a_user in grew.values()) or missing or any(errors.values()):
        raise SystemExit("soak: missed")


if __name__ == "__main__":
    main()
