#!/usr/bin/env bash
# `make run`: serves a bundle (BUNDLE=DIR, else the demo), feeds sample events (SAMPLE=DIR with events.jsonl and items.jsonl, else generated) while it serves, prints what to try next. Ctrl-C drains.
set -euo pipefail
cd "$(dirname "$0")/.."

listen=${TAIJI_LISTEN:-127.0.0.1:8080}
admin=${TAIJI_ADMIN_LISTEN:-127.0.0.1:9090}
work=${TAIJI_WORK:-.cache/run}
binaries=${1:-${CARGO_TARGET_DIR:-target}/release}
# The service is on this machine: a proxy for the package registries has no part in it.
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
export NO_PROXY=$no_proxy
bundle=${BUNDLE:-models/demo/1}
sample=${SAMPLE:-$work/sample-reason}
mkdir -p "$work"

server= feeder= poller=
# Whatever ends the script ends its children; the server drains, and its exit code counts where ours says nothing.
cleanup() {
  code=$?
  trap - EXIT INT TERM
  for child in $poller $feeder $server; do kill -TERM "$child" 2>/dev/null || true; done
  if [ -n "$server" ]; then
    drained=0
    wait "$server" || drained=$?
    [ "$code" != 0 ] || code=$drained
  fi
  exit "$code"
}
trap cleanup EXIT
trap 'exit 0' INT TERM

[ -s "$sample/events.jsonl" ] ||
  "$binaries/taiji-trainer" synth --world reason --out "$sample" --users 230 --seed 7 >/dev/null
first() { # first FIELD FILE: a text field of the first line; the generator's ids need no unescaping
  sed -nE "1s/.*\"$1\": ?\"([^\"]*)\".*/\1/p" "$2"
}
user=$(first user_id "$sample/events.jsonl")
item=$(first id "$sample/items.jsonl")
now=$(date +%s%3N)

"$binaries/taiji" serve --listen "$listen" --admin-listen "$admin" --store "embedded:$work/store" \
  --bundle "$bundle" &
server=$!

# One answer, head and body; curl may not be there.
get() { # get ADDRESS PATH
  exec 3<>"/dev/tcp/${1%:*}/${1##*:}" && printf 'GET %s HTTP/1.0\r\nhost: %s\r\n\r\n' "$2" "$1" >&3 && cat <&3
}
export -f get

wait_for() { # wait_for ADDRESS PATH TEXT: until the answer holds the text; fails after two minutes, or when the server is gone
  (
    deadline=$((SECONDS + 120))
    while [ "$SECONDS" -lt "$deadline" ]; do
      answer=$(timeout 5 bash -c 'get "$@"' get "$1" "$2" 2>/dev/null) || true
      case $answer in *"$3"*) exit 0 ;; esac
      sleep 0.2
    done
    exit 1
  ) &
  poller=$!
  wait -n "$poller" "$server" || true
  # The server says by itself why it ended; its exit code becomes ours.
  kill -0 "$server" 2>/dev/null || { code=0; wait "$server" || code=$?; server=; exit "$code"; }
  wait "$poller" || { poller=; return 1; }
  poller=
}

wait_for "$admin" /readyz '"ready":true' || { echo "the service did not become ready" >&2; exit 69; }
"$binaries/taiji" feed --file "$sample/events.jsonl" --rate 200 --http "http://$listen" &
feeder=$!
# A purchase of now: on a second run, when the sample is known already, it is what there is to refresh.
printf '{"user_id":"%s","item_id":"%s","action":"purchase","ts_ms":%s}\n' "$user" "$item" "$now" >"$work/now.jsonl"
"$binaries/taiji" feed --file "$work/now.jsonl" --http "http://$listen" >/dev/null
wait_for "$listen" "/v1/users/$user/features" '"status":"PRESENT"' || { echo "no features were made" >&2; exit 70; }

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
code=0
wait "$server" || code=$?
server=
exit "$code"
