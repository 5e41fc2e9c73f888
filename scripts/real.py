"""`make real`: import a public data set, train on its training part, serve, feed 1,000 histories, print the figures."""

import collections
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import time

from service import Service

USERS = 1000
SET = "instruments-mm"


def entropy(values):
    counts, total = collections.Counter(values), len(values)
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def jaccard(left, right):
    return len(left & right) / len(left | right) if left | right else 0.0


def read_histories(path):
    histories = collections.defaultdict(list)
    with open(path) as file:
        for line in file:
            histories[json.loads(line)["user_id"]].append(line)
    return histories


def measure(service, users, items_of):
    rows = [service.row(user, "intra,cross,text") for user in users]
    present = [row for row in rows if row["groups"]["intra"]["status"] == "PRESENT"]
    codes = [row["groups"]["intra"]["sparse_ids"] for row in present]
    draw, everyone = random.Random(1), sorted(items_of)
    near, far = [], []
    referrers = collections.Counter(row["groups"]["text"]["neighbour_user_id"] for row in present)
    del referrers[""]
    gaps = [row["groups"]["cross"].get("gap_to_second", 0.0) for row in present if row["groups"]["cross"]["item_ids"]]
    for row in present:
        neighbour = row["groups"]["text"]["neighbour_user_id"]
        if neighbour in items_of:
            own = items_of[row["user_id"]]
            near.append(jaccard(own, items_of[neighbour]))
            strangers = [draw.choice(everyone) for _ in range(20)]
            far.append(sum(jaccard(own, items_of[other]) for other in strangers) / len(strangers))
    slots = [entropy([row[slot] for row in codes]) for slot in range(len(codes[0]))]
    mean = lambda values: sum(values) / max(len(values), 1)
    return {
        "users fed": len(users),
        "users with features": len(present),
        "format rate": mean(["format_ok" in row["groups"]["intra"]["meta"]["flags"] for row in present]),
        "entropy a slot, bits": [round(bits, 2) for bits in slots],
        "least entropy, bits": min(slots),
        "distinct code tuples": len({tuple(row) for row in codes}) / len(codes),
        "users with a neighbour": len(near),
        "overlap with the neighbour (Jaccard)": mean(near),
        "overlap with random users (Jaccard)": mean(far),
        "ratio": mean(near) / mean(far) if mean(far) else math.inf,
        "share with gap 0": mean([gap == 0 for gap in gaps]),
        "most referrers of one user": max(referrers.values(), default=0),
        "different neighbours": len(referrers),
    }


def main():
    binaries = os.environ.get("CARGO_TARGET_DIR", "target") + "/release"
    data = pathlib.Path(os.environ.get("TAIJI_DATA_DIR", "../shared/data"))
    interactions, items = data / f"{SET}.interactions.tsv.gz", data / f"{SET}.items.jsonl.gz"
    if not interactions.is_file():
        sys.exit(f"real: {interactions} is not there; set TAIJI_DATA_DIR to the folder that holds it")
    work = pathlib.Path(os.environ.get("TAIJI_WORK", ".cache/real"))
    folder = work / "data"
    trainer = f"{binaries}/taiji-trainer"
    subprocess.run([trainer, "import", "amazon", "--interactions", interactions, "--items", items, "--out", folder], check=True)
    subprocess.run([trainer, "fetch", "--recipe", "models/real.toml"], check=True)
    started = time.time()
    run = [trainer, "run", "--recipe", "models/real.toml", "--data", folder, "--out", work / "models"]
    subprocess.run(run, check=True)
    print(f"trained in {time.time() - started:.0f} s (stages done before count nothing)")

    histories = read_histories(folder / "events.jsonl")
    everyone = sorted(histories, key=int)
    users = everyone[:: max(len(everyone) // USERS, 1)][:USERS]
    fed = work / "fed.jsonl"
    fed.write_text("".join(line for user in users for line in histories[user]))
    items_of = {user: {json.loads(line)["item_id"] for line in lines} for user, lines in histories.items()}
    store = work / f"store-{os.getpid()}"
    with Service(binaries, store, work / "models/real/1", work / "serve.log") as service:
        started = time.time()
        service.feed(fed, quiet=False)
        service.until(lambda: service.fresh(users) == len(users) and service.idle(), 1200, "not all users got features")
        print(f"all refreshed {time.time() - started:.0f} s after the first event")
        figures = measure(service, users, items_of)
    for name, value in figures.items():
        print(f"{name:40} {value if not isinstance(value, float) else round(value, 5)}")
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    wrong = [name for name, ok in {
        "every user has features": figures["users with features"] == len(users),
        "entropy > 5 bits a slot": figures["least entropy, bits"] > 5,
        "neighbour overlap >= 2x random": figures["ratio"] >= 2,
    }.items() if not ok]
    if wrong:
        sys.exit("real: missed: " + "; ".join(wrong))


main()
