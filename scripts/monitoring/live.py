"""Every query of dashboard and rules against a Prometheus that scraped two real services under load.

One service has the embedded store and a bundle, the other a Redis, canned answers, a token budget and the fast path. A query that
says nothing, or a selector that finds nothing, fails unless exceptions.toml ([silent]) has the reason.

    python3 scripts/monitoring/live.py PROMETHEUS_FOLDER BINARIES [--bundle DIR] [--seconds N] [--picture FILE]
"""

import argparse
import contextlib
import json
import math
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import inputs
import picture
from dashboard import filtered
from panels import ROWS
from promql import look

sys.path.insert(0, str(inputs.ROOT / "scripts"))
from service import Service, free_port  # noqa: E402

SCRAPE = 1  # seconds
RATE_INTERVAL = "10s"
GROUPS = ["intra", "cross"]
# A proxy for the package registries has no part in it.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Logs stay there.
WORK = inputs.ROOT / ".cache/monitoring"


class Prometheus:
    """A server with our rules, scraping the given targets every second; gone with the context."""

    def __init__(self, folder, work, targets):
        self.url = f"http://127.0.0.1:{free_port()}"
        static = [{"targets": [address], "labels": {"namespace": "live"}} for address in targets]
        # JSON is YAML.
        config = {"global": {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": f"{SCRAPE}s"}, "rule_files": [str(inputs.RULES)],
                  "scrape_configs": [{"job_name": "taiji", "static_configs": static}]}
        (work / "prometheus.json").write_text(json.dumps(config))
        self.log = open(work / "prometheus.log", "w")
        self.child = subprocess.Popen(
            [folder / "prometheus", f"--config.file={work}/prometheus.json", f"--storage.tsdb.path={work}/series",
             f"--web.listen-address={self.url.removeprefix('http://')}"], stderr=self.log, stdout=self.log)

    def __enter__(self):
        deadline = time.time() + 30
        while time.time() < deadline and self.child.poll() is None:
            with contextlib.suppress(OSError):
                DIRECT.open(f"{self.url}/-/ready", timeout=5).read()
                return self
            time.sleep(0.1)
        raise SystemExit(f"monitoring: prometheus does not start; see {self.log.name}")

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait(30)
        self.log.close()

    def api(self, path, **arguments):
        try:
            with DIRECT.open(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"monitoring: {arguments}: {error.read().decode()}") from None

    def over(self, query, start, end, step=SCRAPE):
        """Series of a range query: (labels, [(time, finite value)]), those without any left out."""
        found = []
        for series in self.api("query_range", query=query, start=start, end=end, step=step)["result"]:
            points = [(at, float(value)) for at, value in series["values"] if math.isfinite(float(value))]
            if points:
                found.append((series["metric"], points))
        return found


@contextlib.contextmanager
def redis(work):
    port = free_port()
    folder = work / "redis"
    folder.mkdir()
    child = subprocess.Popen(["redis-server", "--port", str(port), "--dir", folder, "--save", "", "--bind", "127.0.0.1"],
                             stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(30)


def read(service, users):
    service.features(users, GROUPS)
    service.row(users[0], ",".join(GROUPS))
    service.call("POST", "/get-online-features", {"features": ["taiji_intra:sparse_ids"], "entities": {"user_id": users[:5]}})


def act(service, user):
    """Something happens that is refreshed at once and waited for; then once more, which needs no LLM."""
    event = {"user_id": user, "item_id": "i1", "action": "purchase", "ts_ms": int(time.time() * 1000)}
    service.call("POST", "/v1/events", {"events": [event]})
    service.call("POST", f"/v1/users/{user}/refresh", {"wait_ms": 1000})
    service.call("POST", f"/v1/users/{user}/refresh", {})


class Load:
    """Users come, act, are read, waited for and erased, until told to stop. The first complaint is kept."""

    def __init__(self, services, sample, users):
        self.services, self.sample, self.users = services, sample, users
        self.ended, self.failure = threading.Event(), None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            self.work()
        except (Exception, SystemExit) as failure:  # told by the caller
            self.failure = failure
            self.ended.set()

    def work(self):
        feeders = [subprocess.Popen([f"{service.binaries}/taiji", "feed", "--file", f"{self.sample}/events.jsonl", "--items",
                                     f"{self.sample}/items.jsonl", "--http", service.url, "--rate", "1500"], stdout=subprocess.DEVNULL)
                   for service in self.services]
        began, second, round_ = time.time(), 0, 0
        while not self.ended.wait(0.02):
            here = self.users[round_ % len(self.users) :][:50] + ["nobody"]
            round_ += 1
            is_new = int(time.time() - began) > second
            second = int(time.time() - began)
            for service in self.services:
                read(service, here)
                if is_new:
                    act(service, here[0])
                if is_new and second % 5 == 0:
                    service.call("DELETE", f"/v1/users/{here[-2]}")
        for feeder in feeders:
            feeder.terminate()
            feeder.wait(30)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def plain(query):
    """A query of the dashboard as Grafana would send it with everything chosen."""
    return (query.replace("$__rate_interval", RATE_INTERVAL).replace("$namespace", ".*").replace("$job", "taiji").replace("$instance", ".*"))


def excused(query, silent):
    """Why the query may say nothing, if one of its series may be missing."""
    for name, selector in look(query)[0]:
        reason = silent.get(name) or silent.get(f"{name}{{{selector}}}")
        if reason:
            return reason
    return None


def of_panels(prometheus, start, end, silent):
    """Complaints, and what each panel shows."""
    wrong, shown = [], {}
    for _, row in ROWS:
        for panel in row:
            for query, legend in panel["queries"]:
                found = prometheus.over(plain(filtered(query)), start, end)
                shown[panel["title"], query] = found
                if not found and not excused(query, silent):
                    wrong.append(f"panel {panel['title']}: nothing from {query}")
    return wrong, shown


def of_rules(prometheus, start, end, silent):
    """Complaints: a rule that is not what check.py read, cannot be evaluated, fires, or names a selector that finds nothing."""
    loaded = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    texts = {rule["name"]: rule["query"] for rule in loaded}
    squeezed = lambda text: "".join(text.split())
    wrong = [f"rule {read['alert']}: inputs.py reads another expression than Prometheus, {read['expr']}" for read in inputs.alerts()
             if squeezed(texts.get(read["alert"], "")) != squeezed(read["expr"])]
    wrong += [f"rule {rule['name']}: {rule['lastError']}" for rule in loaded if rule.get("lastError")]
    wrong += [f"rule {rule['name']}: fires on a healthy service" for rule in loaded if rule["state"] == "firing"]
    for rule in inputs.alerts():
        for name, selector in look(rule["expr"])[0]:
            series = f"{name}{{{selector}}}" if selector else name
            if not (silent.get(name) or silent.get(series)) and not prometheus.over(f"count({series})", start, end):
                wrong.append(f"rule {rule['alert']}: no series {series}")
    return wrong


def measured(options, work):
    """Runs services, Prometheus and load; complaints, what panels show, and the time it covers."""
    sample = work / "sample"
    subprocess.run([f"{options.binaries}/taiji-trainer", "synth", "--world", "reason", "--out", sample, "--users", "230", "--seed", "7"],
                   check=True, stdout=subprocess.DEVNULL)
    users = [json.loads(line)["user_id"] for line in open(sample / "users.jsonl")]
    canned = {"TAIJI__ENGINE__NULL_LATENCY_MS": "300", "TAIJI__REFRESH__CONCURRENCY": "2", "TAIJI__REFRESH__TOKENS_PER_SECOND": "20000", "TAIJI__REFRESH__TOKENS_PER_DAY": "100000000", "TAIJI__REFRESH__FAST_PATH": "true"}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(redis(work))
        services = [stack.enter_context(Service(options.binaries, work / "store", options.bundle, work / "embedded.log")),
                    stack.enter_context(Service(options.binaries, url, options.bundle, work / "redis.log", engine="null", **canned))]
        addresses = [f"127.0.0.1:{service.admin_port}" for service in services]
        prometheus = stack.enter_context(Prometheus(options.prometheus, work, addresses))
        began = time.time()
        with Load(services, sample, users) as load:
            load.ended.wait(options.seconds)
            if load.failure:
                raise SystemExit(f"monitoring: the load failed: {load.failure}")
        ended, silent = time.time(), inputs.exceptions()["silent"]
        wrong, shown = of_panels(prometheus, began, ended, silent)
        return wrong + of_rules(prometheus, began, ended, silent), shown, (began, ended)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("prometheus", type=pathlib.Path)
    parser.add_argument("binaries")
    parser.add_argument("--bundle", default="models/demo/1")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    wrong, shown, span = measured(options, WORK)
    for line in wrong:
        print(f"monitoring: {line}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)
    if options.picture:
        options.picture.write_text(picture.draw(shown, span))
    answered = sum(bool(found) for found in shown.values())
    print(f"monitoring: {answered} of {len(shown)} queries answered by a live Prometheus, {len(shown) - answered} excused in exceptions.toml; no alert fires")


if __name__ == "__main__":
    main()
