"""The definitions that Feast's server gets in `make bench-read`, and, started as a program, the users' values.

In: how many users. Out: features of `load-0`, `load-1`, … in the online store of the repository in the working folder.
"""

import datetime
import sys

from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Int64, String
from feast.value_type import ValueType

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

taiji_intra = FeatureView(
    name="taiji_intra",
    entities=[user],
    # Longer than any run; nothing reads the file, values are written to the online store.
    ttl=datetime.timedelta(days=7),
    schema=[
        Field(name="sparse_ids", dtype=Array(Int64)),
        Field(name="category_ids", dtype=Array(String)),
        Field(name="has_llm_feature", dtype=Int64),
    ],
    source=FileSource(path="none.parquet", timestamp_field="event_timestamp"),
)


def write(users):
    import pandas

    names = [f"load-{rank}" for rank in range(users)]
    frame = pandas.DataFrame({
        "user_id": names,
        "sparse_ids": [[slot * 256 + (rank * 31 + slot * 7) % 256 + 1 for slot in range(8)] for rank in range(users)],
        "category_ids": [["Outdoor", "Camping", "Sleeping-bags"]] * users,
        "has_llm_feature": [1] * users,
        "event_timestamp": [datetime.datetime.now(datetime.timezone.utc)] * users,
    })
    FeatureStore(repo_path=".").write_to_online_store("taiji_intra", frame)


if __name__ == "__main__":
    write(int(sys.argv[1]))
