"""Feast's view of what taiji serves: entity, views, types. `tests` keep it equal to src/feature/schema.rs.

    feast apply        (in this folder, with feature_store.yaml's path put right)

taiji is the online store and honours the age of its features itself; there is no offline store, so the source is a name only.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
nowhere = FileSource(name="taiji", path="taiji.parquet", timestamp_field="event_timestamp")


def view(name, schema):
    return FeatureView(name=name, entities=[user], schema=schema, source=nowhere, ttl=timedelta(0), online=True)


taiji_intra = view(
    "taiji_intra",
    [
        Field(name="sparse_ids", dtype=Array(Int64)),
        Field(name="category_ids", dtype=Array(String)),
        Field(name="has_llm_feature", dtype=Int64),
    ],
)
taiji_cross = view(
    "taiji_cross",
    [
        Field(name="item_ids", dtype=Array(String)),
        Field(name="actions", dtype=Array(String)),
        Field(name="ts_ms", dtype=Array(Int64)),
        Field(name="similarity", dtype=Float32),
        Field(name="gap_to_second", dtype=Float32),
    ],
)
taiji_scid = view(
    "taiji_scid",
    [
        Field(name="user", dtype=Array(Int64)),
        Field(name="next_item_ids", dtype=Array(String)),
        Field(name="next_scids", dtype=Array(Int64)),
        Field(name="scores", dtype=Array(Float32)),
    ],
)
