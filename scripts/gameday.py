"""`make gameday`: plays the procedures of docs/runbook.md on a live set-up, by the commands that stand there.

Two api processes and one of ingest and infer, a Redis with an append-only file and an Apache Kafka, all in one shell that ends with this
script. Something is broken, the blocks of the runbook's section are run in that shell as they are, and then it must be well: no
command failed, no read failed (readers turn away from a process that is not ready, as a load balancer does), every event is in its
user's history once. Standard library only.

    python3 scripts/gameday.py BINARIES [--short] [--old PROGRAM] [--only ACT] [--runbook FILE] [--write]

Exit code 69 where Kafka cannot be had.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

from page import commit, machine, write_figures, write_section
from service import free_port

RUNBOOK = pathlib.Path("docs/runbook.md")
# Methods of Game. `restore` makes a backup, and erases a user, first.
ACTS = ("upgrade", "rollback", "rotation", "poisoned", "restore")
# Fewer reads of an act prove nothing.
LEAST_READS = 50
USERS = 20
ADMIN_KEY, READ_KEY = "gameday-admin-key-1", "gameday-reader-key-1"
# What ends with the shell, however that ends.
PRELUDE = """
set -E -o pipefail
trap 'FAILED="$FAILED line $LINENO: $BASH_COMMAND;"' ERR
trap 'trap "" ERR; kill -9 $(jobs -p) 2>/dev/null; redis-cli -u "$REDIS" shutdown nosave >/dev/null 2>&1; rm -rf "$KAFKA_DATA"' EXIT
"""
KAFKA = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
num.partitions=4
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=true
"""
CONFIG = """[server]
drain_delay_ms = {drain_delay_ms}
[auth]
read_keys = ["{read_key}"]
write_keys = []
admin_keys = ["{admin_key}"]
[store]
url = "{redis}"
[bundle]
dir = "{bundle}"
[engine]
kind = "null"
[refresh]
weight_threshold = 0.0
min_interval_ms = 0
max_interval_ms = 0
poll_ms = 20
[kafka]
brokers = "{kafka}"
group = "gameday"
commit_delay_ms = 2000
"""


def sections(runbook):
    """Heading of each procedure -> its blocks of commands; "" for what stands before the first."""
    page = runbook.read_text().split("\n## Procedures\n")[1]
    parts = re.split(r"^### (.*)\n", page, flags=re.M)
    named = dict(zip([""] + parts[1::2], [parts[0]] + parts[2::2]))
    return {name: re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S) for name, text in named.items()}


def until(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"gameday: waited {seconds} s for {what}")
        time.sleep(0.05)
    return found


def ask(address, method, path, body=None, key=ADMIN_KEY, connection=None):
    """(status, JSON or text) of one call."""
    own = connection or http.client.HTTPConnection(address, timeout=20)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        own.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = own.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if "json" in (answer.getheader("content-type") or "") else text
    finally:
        if connection is None:
            own.close()


class Shell:
    """One bash, in which everything is run."""

    def __init__(self, work, names):
        self.work, self.said = work, ""
        # A proxy for the package registries has no part in it.
        environment = {**os.environ, **names, "no_proxy": "127.0.0.1"}
        environment = {name: value for name, value in environment.items() if not name.startswith("TAIJI_")}
        self.child = subprocess.Popen(["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      text=True, env=environment, start_new_session=True)
        self.run(PRELUDE)

    def run(self, text, seconds=180, may_fail=False):
        """What the block wrote. A command of it that failed ends the game, unless it may; then it is returned, too."""
        block = self.work / "block.sh"
        block.write_text(text)
        self.child.stdin.write(f"FAILED=; source {block} </dev/null; echo; echo \"@@ $FAILED\"\n")
        self.child.stdin.flush()
        late = threading.Timer(seconds, self.child.kill)
        late.start()
        lines = []
        for line in self.child.stdout:
            if line.startswith("@@ "):
                break
            lines.append(line)
        late.cancel()
        said = "".join(lines)
        with open(self.work / "said.log", "a") as log:
            log.write(f"--- {text}\n--- {said}\n")
        if self.child.poll() is not None:
            raise SystemExit(f"gameday: the shell ended, or took more than {seconds} s:\n{text}\n{said}")
        failed = line[3:].strip()
        if failed and not may_fail:
            raise SystemExit(f"gameday: a command failed: {failed}\n--- the block:\n{text}\n--- it wrote:\n{said}")
        return said, failed

    def set(self, **names):
        self.run("".join(f"{name}='{value}'; export {name}\n" for name, value in names.items()))

    def close(self):
        self.child.stdin.close()
        self.child.wait(60)


class Readers:
    """Read without a pause between ready processes; count what fails while it counts."""

    def __init__(self, processes):
        self.processes, self.key, self.users = processes, READ_KEY, []
        self.ready = {name: False for name in processes}
        self.reads, self.failed, self.ended, self.counts = 0, [], False, False
        self.lock = threading.Lock()
        jobs = [(self.balance, ())] + [(self.read, (number,)) for number in range(4)]
        self.threads = [threading.Thread(target=job, args=arguments, daemon=True) for job, arguments in jobs]
        for thread in self.threads:
            thread.start()

    def balance(self):
        while not self.ended:
            for name, (_, admin) in self.processes.items():
                try:
                    self.ready[name] = ask(admin, "GET", "/readyz")[0] == 200
                except OSError:
                    self.ready[name] = False
            time.sleep(0.1)

    def read(self, number):
        kept, turn = {}, number
        while not self.ended:
            turn += 1
            time.sleep(0.005)
            ready = [name for name, is_ready in self.ready.items() if is_ready]
            # A process that left has closed them.
            kept = {name: connection for name, connection in kept.items() if name in ready}
            if not (self.counts and self.users):
                continue
            name, user = (ready or list(self.processes))[turn % (len(ready) or 2)], self.users[turn % len(self.users)]
            address = self.processes[name][0]
            # Half of them keep their connections.
            connection = kept.setdefault(name, http.client.HTTPConnection(address, timeout=20)) if number % 2 else None
            try:
                status, row = ask(address, "GET", f"/v1/users/{user}/features?groups=intra", key=self.key, connection=connection)
                wrong = None if (status, row.get("status")) == (200, "PRESENT") else f"{name}: {status} {row}"
            except (OSError, http.client.HTTPException) as error:
                wrong = f"{name}: {error!r}"
                kept.pop(name, None)
            with self.lock:
                if self.counts:
                    self.reads += 1
                    self.failed += [wrong] if wrong else []

    def close(self):
        self.ended = True
        for thread in self.threads:
            thread.join(30)


class Game:
    def __init__(self, binaries, short, old, runbook):
        self.short, self.rows = short, []
        self.blocks = sections(runbook)
        self.work = pathlib.Path(".cache/gameday").resolve()
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in ("run", "redis", "old/bin", "new/bin"):
            (self.work / folder).mkdir(parents=True)
        jars = subprocess.run(["bash", "scripts/kafka.sh"], capture_output=True, text=True)
        if jars.returncode != 0:
            print(f"gameday: it needs Apache Kafka. {jars.stderr.strip()}", file=sys.stderr)
            sys.exit(69)
        self.jars = jars.stdout.strip()
        self.program(binaries / "taiji", old)
        ports = [free_port() for _ in range(9)]
        address = [f"127.0.0.1:{port}" for port in ports]
        self.processes = {"api-1": (address[0], address[1]), "api-2": (address[2], address[3])}
        self.worker = (address[4], address[5])
        self.redis, self.kafka, self.controller = ports[6], address[7], ports[8]
        self.sent = {}
        self.shell = None

    def program(self, new, old):
        """Two builds. Without an earlier release's program the same one plays a later build."""
        for name, path in (("old", old or new), ("new", new)):
            shutil.copy(path, self.work / name / "bin/program")
            rehearsal = "TAIJI_REHEARSAL=later " if name == "new" and not old else ""
            (self.work / name / "bin/taiji").write_text(f'#!/bin/sh\n{rehearsal}exec "{self.work}/{name}/bin/program" "$@"\n')
            (self.work / name / "bin/taiji").chmod(0o755)
        (self.work / "current").symlink_to(self.work / "old")

    def bundle(self, epoch):
        """The demo's bundle as another epoch of the same space."""
        folder = self.work / f"bundles/{epoch}"
        shutil.copytree("models/demo/1", folder, copy_function=os.link)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["epoch"] = epoch
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def set_up(self):
        redis = f"redis://127.0.0.1:{self.redis}"
        self.config = self.work / "taiji.toml"
        self.config.write_text(CONFIG.format(drain_delay_ms=1000 if self.short else 2000, read_key=READ_KEY, admin_key=ADMIN_KEY, redis=redis,
                                             bundle=self.bundle(1), kafka=self.kafka))
        (self.work / "redis.conf").write_text(f"port {self.redis}\nbind 127.0.0.1\ndir {self.work}/redis\nappendonly yes\nsave \"\"\nlogfile redis.log\n")
        _, port = self.kafka.split(":")
        (self.work / "kafka.properties").write_text(KAFKA.format(controller=self.controller, port=port, data=self.work / "kafka"))
        for name, (public, admin) in {**self.processes, "worker": self.worker}.items():
            roles = "api" if name.startswith("api") else "ingest,infer"
            (self.work / f"run/{name}.sh").write_text(
                f'exec "$CURRENT/bin/taiji" serve --config "$CONFIG" --roles {roles} --listen {public} --admin-listen {admin}\n')
            (self.work / f"run/{name}.admin").write_text(admin)
        self.shell = Shell(self.work, {
            "CONFIG": str(self.config), "READERS": "api-1 api-2", "INGEST": "worker", "RUN": f"{self.work}/run", "REDIS": redis,
            "SETTLE": "0.5" if self.short else "2", "API": self.processes["api-2"][0], "TOKEN": ADMIN_KEY, "KAFKA": self.kafka,
            "CURRENT": f"{self.work}/current", "NEW": f"{self.work}/new", "REDIS_DIR": f"{self.work}/redis", "REDIS_CONF": f"{self.work}/redis.conf",
            "BACKUP": f"{self.work}/backup.rdb", "ERASED": f"{self.work}/erased", "KAFKA_DATA": f"{self.work}/kafka", "PATH": f"{self.work}/current/bin:{os.environ['PATH']}"})
        (self.work / "erased").touch()
        self.shell.run(f"""
java -cp "{self.jars}/*" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg -c {self.work}/kafka.properties
java -Xmx512m -cp "{self.jars}/*" kafka.Kafka {self.work}/kafka.properties >{self.work}/kafka.log 2>&1 </dev/null & echo $! >"$RUN/kafka.pid"
redis-server "$REDIS_CONF" --daemonize yes
until (exec 3<>/dev/tcp/{self.kafka.replace(":", "/")}) 2>/dev/null; do sleep 0.1; done
""")
        self.shell.run(self.blocks[""][0])
        self.feed(self.events("u", USERS, 5), items=[{"id": "i1", "title": "a lamp"}])
        self.shell.run('for name in $READERS $INGEST; do start "$name"; done')
        self.readers = Readers(self.processes)
        until("features of all users", 60, self.all_present)
        self.readers.users = [f"u{number}" for number in range(USERS)]

    def events(self, prefix, users, each, action="click", sent=True):
        """Events of so many users that nobody sent before."""
        made = []
        for place in range(users * each):
            user, number = f"{prefix}{place % users}", len(self.sent.get(f"{prefix}{place % users}", ())) if sent else place
            event = {"event_id": f"{prefix}-{action}-{place % users}-{number}", "user_id": user, "item_id": "i1", "action": action,
                     "ts_ms": int(time.time() * 1000) - 100_000 + place}
            made.append(event)
            if sent:
                self.sent.setdefault(user, set()).add(event["event_id"])
        return made

    def feed_command(self, events, items=()):
        number = len(list(self.work.glob("events-*")))
        files = {"file": events, "items": items}
        words = ["taiji", "feed", "--config", str(self.config), "--kafka", self.kafka]
        for name, rows in files.items():
            path = self.work / f"events-{number}-{name}.jsonl"
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
            words += [f"--{name}", str(path)] if rows else []
        return " ".join(words)

    def feed(self, events, items=()):
        self.shell.run(self.feed_command(events, items))

    def history(self, user):
        status, answer = ask(self.processes["api-2"][0], "GET", f"/v1/users/{user}/history")
        return answer if status == 200 else None

    def lacking(self):
        """Users in whose history an event is missing, or stands or was counted twice."""
        wrong = []
        for user, ids in self.sent.items():
            history = self.history(user)
            kept = sorted(event["event_id"] for event in history["engagements"]) if history else []
            if kept != sorted(ids) or history["seq"] != len(ids):
                wrong.append(f"{user}: {len(kept)} kept, {history and history['seq']} counted of {len(ids)}")
        return wrong

    def wait_for_whole(self, what):
        try:
            until(what, 60, lambda: not self.lacking())
        except SystemExit as error:
            raise SystemExit(f"{error}; so far: {self.lacking()[:5]}") from None

    def all_present(self):
        users = [f"u{number}" for number in range(USERS)]
        try:
            status, columns = ask(self.processes["api-1"][0], "POST", "/v1/features", {"users": users, "groups": ["intra"]})
        except OSError:
            return False
        return status == 200 and columns["status"] == ["PRESENT"] * USERS

    def play(self, name, blocks=None):
        text = "\n".join(self.blocks[name][slice(*blocks)] if blocks else self.blocks[name])
        return self.shell.run(text)[0]

    def pids(self):
        return [int((self.work / f"run/{name}.pid").read_text()) for name in ("api-1", "api-2", "worker")]

    def counted(self, name, broken, cure, may_fail=False):
        """Plays with readers; notes how long it took and what they met."""
        readers = self.readers
        readers.reads, readers.failed, readers.counts = 0, [], not may_fail
        begun = time.monotonic()
        cure()
        seconds = time.monotonic() - begun
        if not may_fail:
            # Some acts are over before a reader has looked twice.
            until(f"reads after {name}", 20, lambda: readers.failed or readers.reads >= LEAST_READS)
        readers.counts = False
        self.rows.append({"name": name, "broken": broken, "seconds": seconds, "reads": readers.reads, "failed": len(readers.failed)})
        print(f"gameday: {name}: {seconds:.1f} s, {readers.reads} reads, {len(readers.failed)} failed", flush=True)
        if readers.failed:
            raise SystemExit(f"gameday: {name}: reads failed: {readers.failed[:3]}")

    # ---- the procedures

    def upgrade(self):
        load = self.events("load", 50, 10 if self.short else 60)
        feeding = f"{self.feed_command(load)} --rate 100 >{self.work}/feed.log 2>&1 </dev/null & FEED=$!"
        self.shell.run(feeding)
        self.counted("Upgrade", "the program is the former one", lambda: self.play("Upgrade"))
        exes = [os.readlink(f"/proc/{pid}/exe") for pid in self.pids()]
        assert exes == [f"{self.work}/new/bin/program"] * 3, exes

    def epochs(self):
        text = [ask(admin, "GET", "/metrics")[1] for _, admin in [*self.processes.values(), self.worker]]
        return [re.search(r'taiji_bundle_info\{.*?epoch="(\d+)"', page)[1] for page in text]

    def rollback(self):
        if not self.short:
            # A whole bundle goes in and is taken back.
            for epoch, broken in ((self.bundle(2), "epoch 1 is served, 2 is wanted"), (self.work / "bundles/1", "a bundle that loads and is not wanted")):
                self.shell.set(FORMER=epoch)
                self.counted("Rollback of a bundle", broken, lambda: self.play("Rollback of a bundle"))
                assert self.epochs() == [epoch.name] * 3, self.epochs()
        bad = self.bundle(3)
        # What every role reads; a link would break the others' too.
        codebook = bad / "space/pq.safetensors"
        whole = codebook.read_bytes()
        codebook.unlink()
        codebook.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        self.config.write_text(self.config.read_text().replace(f'dir = "{self.work}/bundles/1"', f'dir = "{bad}"'))
        said, failed = self.shell.run("restart_all", may_fail=True)
        assert failed and "pq.safetensors" in said, (failed, said)
        self.shell.set(FORMER=self.work / "bundles/1")
        self.counted("Rollback of a bundle", "a bundle that does not load stopped a rolling restart at its first process", lambda: self.play("Rollback of a bundle"))
        assert self.epochs() == ["1"] * 3, self.epochs()

    def rotation(self):
        self.shell.set(OLD_KEY=READ_KEY)

        def cure():
            self.play("Rotation of keys", (0, 1))
            self.readers.key = re.search(r'read_keys = \["[^"]*", "([^"]*)"', self.config.read_text())[1]
            # Reads under way still bear the old key.
            time.sleep(0.5)
            self.play("Rotation of keys", (1, 2))

        self.counted("Rotation of keys", "a readers' key is old", cure)

    def poisoned(self):
        waved = self.events("u", USERS, 2, action="waved")
        self.feed([*waved, "no json", "\u0000", '{"user_id": 7}'])
        # The topic is made with the first letter: it may not be there yet.
        listed = lambda: self.shell.run('taiji dlq list --config "$CONFIG"', may_fail=True)[0]  # noqa: E731
        until("dead letters", 60, lambda: re.search(rf"field {len(waved) + 1}, json 2", listed()))
        self.shell.set(ACTION="waved")
        self.counted("Poisoned topic", f"{len(waved)} events of an unknown action and 3 records of garbage", lambda: (
            self.play("Poisoned topic"), self.wait_for_whole("the letters' events")))

    def erasure(self, user="u7"):
        self.shell.set(USER_ID=user)
        self.readers.users.remove(user)
        self.counted("Erasure", "a user wants to be forgotten", lambda: self.play("Erasure"))
        del self.sent[user]

    def restore(self):
        self.shell.run('test -z "$FEED" || wait "$FEED"')
        self.wait_for_whole("the load's events")
        # Not in Kafka: these only a backup brings back.
        post = lambda events: ask(self.processes["api-1"][0], "POST", "/v1/events", {"events": events})[0] == 202  # noqa: E731
        assert post(self.events("kept", 3, 2))
        self.counted("Backup of Redis", "there is none", lambda: self.play("Backup of Redis"))
        self.feed(self.events("u", USERS, 1))
        self.wait_for_whole("events of who is erased")
        self.erasure()
        by_http = self.events("http", 1, 5)
        assert post(by_http)
        self.feed(self.events("new", 10, 5) + self.events("load", 50, 5))
        self.wait_for_whole("what came after the backup")
        # A drain commits all of it: what the backup lacks is not read again by itself.
        self.shell.run("stop worker; start worker")
        self.shell.run('kill -9 "$(redis-cli -u "$REDIS" info server | sed -n "s/^process_id:\\([0-9]*\\).*/\\1/p")"; rm -rf "$REDIS_DIR"; mkdir "$REDIS_DIR"')

        def cure():
            self.play("Restore of Redis")
            # Its sender does, as the page says.
            assert post(by_http)
            self.wait_for_whole("every event again")
            until("features", 60, self.all_but_the_erased)

        self.counted("Restore of Redis", "Redis and its folder are gone; since the backup came events, by Kafka and HTTP, and an erasure", cure, may_fail=True)
        assert self.history("u7") is None
        again = self.shell.run('redis-cli -u "$REDIS" config get appendonly')[0]
        assert "yes" in again, again
        # The next start must find it all.
        self.shell.run('redis-cli -u "$REDIS" shutdown nosave; while redis-cli -u "$REDIS" ping >/dev/null 2>&1; do sleep 0.1; done; redis-server "$REDIS_CONF" --daemonize yes')
        until("everything after one more start of Redis", 60, lambda: not self.lacking() and self.all_but_the_erased())

    def all_but_the_erased(self):
        try:
            rows = [ask(self.processes["api-1"][0], "GET", f"/v1/users/{user}/features?groups=intra") for user in ("u0", "u7", "u19")]
        except OSError:
            return False
        return [(status, row.get("status")) for status, row in rows] == [(200, "PRESENT"), (200, "MISSING"), (200, "PRESENT")]


def table(rows, short):
    lines = [f"`make gameday` at commit {commit()}, {time.strftime('%Y-%m-%d')}; {machine()}{'; short form' if short else ''}. Two api processes, one of ingest and infer "
             f"(canned answers), Redis and Kafka on the same cores; {sum(row['failed'] for row in rows)} of {sum(row['reads'] for row in rows):,} reads failed.", "",
             "| procedure | what was wrong | cured in, s | reads meanwhile | failed |", "|---|---|---|---|---|"]
    for row in rows:
        reads, failed = (f"{row['reads']:,}", row["failed"]) if row["reads"] else ("the store is away", "–")
        lines.append(f"| {row['name']} | {row['broken']} | {row['seconds']:.1f} | {reads} | {failed} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binaries", type=pathlib.Path)
    parser.add_argument("--short", action="store_true", help="less load, shorter pauses, one bundle less")
    parser.add_argument("--old", help="an earlier release's program, to upgrade from")
    parser.add_argument("--only", choices=ACTS, help="one act instead of all")
    parser.add_argument("--runbook", type=pathlib.Path, default=RUNBOOK, help="another page than docs/runbook.md")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    game = Game(given.binaries.resolve(), given.short, given.old, given.runbook)
    try:
        game.set_up()
        for act in [given.only] if given.only else ACTS:
            getattr(game, act)()
        game.readers.close()
    finally:
        if game.shell:
            game.shell.close()
    if given.write:
        write_section("gameday", table(game.rows, given.short))
        cured = [(f"{row['name']}, {row['broken']}: cured in", "s", [row["seconds"]]) for row in game.rows]
        write_figures("gameday", "make gameday", cured)
    print(f"gameday: the procedures of docs/runbook.md cured what was broken, {len(game.rows)} times; no read failed")


main()
