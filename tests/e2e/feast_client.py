"""Feast's own client, and its own server, beside a running taiji; called by reads.rs.

    feast_client.py URL USER DEFINITIONS WORK

USER has features there, `nobody` has none. DEFINITIONS is clients/feast. Ends with 0 when the client finds everything as it expects,
and when taiji answers requests as Feast's server does, but for DIFFERENT and for empty lists.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import datetime, timedelta, timezone

import pandas
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Int64

URL, USER, DEFINITIONS, WORK = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])
# Never absent at taiji, whose 0 says that there is none; Feast has a null.
DIFFERENT = "has_llm_feature"


def definitions():
    spec = importlib.util.spec_from_file_location("taiji_features", DEFINITIONS / "taiji_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(name, online):
    """A Feast repository with the definitions that we ship."""
    folder = WORK / name
    folder.mkdir()
    settings = (DEFINITIONS / "feature_store.yaml").read_text()
    head, rest = settings.split("online_store:\n")
    (folder / "feature_store.yaml").write_text(head + "online_store:\n" + online + rest[rest.index("entity_key") :])
    found = FeatureStore(repo_path=str(folder))
    ours = definitions()
    views = [ours.taiji_intra, ours.taiji_cross, ours.taiji_scid]
    found.apply([ours.user, *views])
    return found, views


def names(views):
    return [f"{view.name}:{field.name}" for view in views for field in view.features if field.name != "user_id"]


def ask(url, body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/get-online-features", json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=10))


def check_client():
    remote, views = store("remote", f"  type: remote\n  path: {URL}\n")
    for full in [False, True]:
        rows = [{"user_id": USER}, {"user_id": "nobody"}]
        found = remote.get_online_features(names(views), rows, full_feature_names=full).to_dict()
        prefix = "taiji_intra__" if full else ""
        assert found["user_id"] == [USER, "nobody"], found
        ids = found[f"{prefix}sparse_ids"]
        assert len(ids[0]) == 8 and all(number > 0 for number in ids[0]) and ids[1] is None, ids
        assert found[f"{prefix}has_llm_feature"][1] == 0, found
        assert len(found) == 1 + len(names(views)), sorted(found)
    print("client: ok")


def columns(answer):
    return dict(zip(answer["metadata"]["feature_names"], answer["results"]))


def rows_of(views, answered, made):
    """What taiji says of USER, as rows for Feast's own store."""
    for view in views:
        fields = [field.name for field in view.features if field.name != "user_id"]
        if any(answered[name]["statuses"][0] == "PRESENT" for name in fields):
            # NULL_VALUE is an empty list.
            row = {name: [[] if (value := answered[name]["values"][0]) is None else value] for name in fields}
            yield view.name, pandas.DataFrame({"user_id": [USER], "event_timestamp": [made], **row})


def own_server(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-s", "-m", "feast.cli.cli", "-c", str(folder), "serve", "-h", "127.0.0.1", "-p", str(port), "--no-access-log"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(folder / "log", "w"))
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            return process, url
        except OSError:
            time.sleep(0.1)
    process.kill()
    sys.exit("feast's server did not come up: " + (folder / "log").read_text()[-2000:])


def check_server():
    local, views = store("local", f"  type: sqlite\n  path: {WORK}/local.db\n")
    asked = names(views)
    body = {"features": asked, "entities": {"user_id": [USER, "nobody"]}}
    ours = ask(URL, body)
    made = datetime.fromisoformat(columns(ours)["sparse_ids"]["event_timestamps"][0].replace("Z", "+00:00"))
    for view, frame in rows_of(views, columns(ours), made):
        local.write_to_online_store(view, frame)
    short = FeatureView(
        name="short",
        entities=[definitions().user],
        schema=[Field(name="ids", dtype=Array(Int64))],
        source=FileSource(name="short", path="short.parquet", timestamp_field="event_timestamp"),
        ttl=timedelta(seconds=1),
    )
    local.apply(short)
    hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    local.write_to_online_store("short", pandas.DataFrame({"user_id": [USER], "event_timestamp": [hour_ago], "ids": [[1]]}))
    process, url = own_server(WORK / "local")
    try:
        theirs = ask(url, body)
        compare(asked, ours, theirs)
        late = columns(ask(url, {"features": ["short:ids"], "entities": {"user_id": [USER]}}))["ids"]
        print(f"an hour past a ttl of a second Feast's own server says {late['statuses'][0]}, taiji OUTSIDE_MAX_AGE")
    finally:
        process.terminate()
        process.wait()
    print("server: ok")


def compare(asked, ours, theirs):
    assert list(ours) == ["metadata", "results"] and set(ours) <= set(theirs), (list(ours), list(theirs))
    # Feast's own order of columns is not the order asked.
    assert sorted(columns(ours)) == sorted(columns(theirs)), (columns(ours).keys(), columns(theirs).keys())
    for name, column in columns(theirs).items():
        mine = columns(ours)[name]
        assert set(mine) == set(column), (name, list(mine), list(column))
        for place, (status, value) in enumerate(zip(column["statuses"], column["values"])):
            if value == []:
                # Feast's own client cannot infer the type of an empty list and raises; a null it takes.
                assert (mine["statuses"][place], mine["values"][place]) == ("NULL_VALUE", None), mine
                continue
            if name == DIFFERENT and place == 1:
                assert (mine["statuses"][1], mine["values"][1], value) == ("PRESENT", 0, None), mine
                continue
            assert mine["statuses"][place] == status, (name, place, mine, column)
            close = isinstance(value, float) and abs(mine["values"][place] - value) < 1e-6
            assert close or mine["values"][place] == value, (name, place, mine, column)
        for mine_at, at in zip(mine["event_timestamps"], column["event_timestamps"]):
            seconds = [datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() for text in (mine_at, at)]
            assert abs(seconds[0] - seconds[1]) < 1, (name, mine_at, at)


os.environ["FEAST_USAGE"] = "False"
shutil.rmtree(WORK, ignore_errors=True)
WORK.mkdir(parents=True)
check_client()
check_server()
