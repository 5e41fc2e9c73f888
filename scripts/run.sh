#!/usr/bin/env bash
# `make run`: serves the demo bundle, feeds sample events while it serves, prints what to try next. Ctrl-C drains.
set -euo pipefail
cd "$(dirname "$0")/.."

listen=${TAIJI_LISTEN:-127.0.0.1:8080}
admin=${TAIJI_ADMIN_LISTEN:-127.0.0.1:9090}
work=${TAIJI_WORK:-.cache/run}
binaries=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$work"

[ -s "$work/sample/events.jsonl" ] ||
  "$binaries/taiji-trainer" synth --out "$work/sample" --users 400 --events 20000 --seed 7 >/dev/null

"$binaries/taiji" serve --listen "$listen" --admin-listen "$admin" --store "embedded:$work/store" \
  --bundle models/demo/1 &
server=$!
feeder=
# Ctrl-C reaches the whole group: the server drains by itself, the feeder stops, we pass the server's exit code on.
finish() {
  [ -z "$feeder" ] || kill "$feeder" 2>/dev/null || true
  kill -TERM "$server" 2>/dev/null || true
  code=0
  wait "$server" || code=$?
  exit "$code"
}
trap finish INT TERM

poll() { python3 - "$@" <<'PY'
import sys, time, urllib.request
url, wanted, deadline = sys.argv[1], sys.argv[2], time.time() + 120
while time.time() < deadline:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            if wanted in answer.read().decode():
                sys.exit(0)
    except OSError:
        pass
    time.sleep(0.2)
sys.exit(1)
PY
}

wait_for() { # wait_for URL TEXT: until the answer holds the text, or the server is gone
  poll "$@" &
  local poller=$!
  while kill -0 "$poller" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { kill "$poller" 2>/dev/null || true; wait "$server" && exit 0 || exit $?; }
    wait -n "$poller" "$server" 2>/dev/null || true
  done
  wait "$poller"
}

wait_for "http://$admin/readyz" '"ready":true' || { echo "the service did not become ready" >&2; finish; }
"$binaries/taiji" feed --file "$work/sample/events.jsonl" --rate 200 --http "http://$listen" &
feeder=$!

user=$(python3 -c 'import json,sys; print(json.loads(open(sys.argv[1]).readline())["user_id"])' "$work/sample/events.jsonl")
wait_for "http://$listen/v1/users/$user/features" '"status":"PRESENT"' || { echo "no features were made" >&2; finish; }
now=$(python3 -c 'import time; print(int(time.time() * 1000))')
item=$(python3 -c 'import json,sys; print(json.loads(open(sys.argv[1]).readline())["id"])' "$work/sample/items.jsonl")

cat <<TEXT

taiji serves on http://$listen and is being fed sample events (200/s). Metrics: http://$admin/metrics
Try, in another terminal:

  # what a ranker reads: columns for many users, defaults for unknown ones
  curl -s http://$listen/v1/features -H 'content-type: application/json' -d '{"users":["$user","nobody"],"groups":["intra","cross","scid"]}'

  # one user with what the LLM wrote
  curl -s 'http://$listen/v1/users/$user/features?groups=intra,cross,text'

  # send an event of your own; a purchase is refreshed at once
  curl -s http://$listen/v1/events -H 'content-type: application/json' -d '{"events":[{"user_id":"you","item_id":"$item","action":"purchase","ts_ms":$now}]}'

Ctrl-C drains and stops.
TEXT
wait "$feeder" || true
feeder=
wait "$server"
