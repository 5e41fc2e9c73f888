//! The ways of a read that are compared. Out: their names, as they stand in the JSON, who answers, and what is asked.

/// Users of a call that asks for many.
pub(super) const MANY: usize = 100;
pub(super) const OURS_ONE: &str = "ours-protobuf-one";
pub(super) const SMALLEST_ONE: &str = "smallest-protobuf-one";

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Ours,
    Smallest,
    Raw,
    /// Feast's own server, that many of those that are named.
    Feast(usize),
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `POST /v1/features`, group `intra`, body and answer protobuf.
    Protobuf,
    /// The same in JSON.
    Native,
    /// `POST /get-online-features`, the view `taiji_intra`.
    Feast,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) who: Who,
    pub(super) shape: Shape,
    pub(super) users: usize,
}

const fn way(name: &'static str, who: Who, shape: Shape, users: usize) -> Way {
    Way { name, who, shape, users }
}

/// Of one of Feast's servers: by the number of its workers.
const FEAST_WAYS: [[Way; 2]; 2] = [
    [way("feast-1-one", Who::Feast(0), Shape::Feast, 1), way("feast-1-many", Who::Feast(0), Shape::Feast, MANY)],
    [way("feast-2-one", Who::Feast(1), Shape::Feast, 1), way("feast-2-many", Who::Feast(1), Shape::Feast, MANY)],
];

/// All that are measured, where so many of Feast's servers run.
pub(super) fn ways(feast_servers: usize) -> Vec<&'static Way> {
    WAYS.iter().chain(FEAST_WAYS.iter().take(feast_servers).flatten()).collect()
}

/// Ours come before those that answer the same bytes.
const WAYS: [Way; 14] = [
    way(OURS_ONE, Who::Ours, Shape::Protobuf, 1),
    way(SMALLEST_ONE, Who::Smallest, Shape::Protobuf, 1),
    way("ours-one", Who::Ours, Shape::Native, 1),
    way("smallest-one", Who::Smallest, Shape::Native, 1),
    way("raw-one", Who::Raw, Shape::Native, 1),
    way("ours-protobuf-many", Who::Ours, Shape::Protobuf, MANY),
    way("smallest-protobuf-many", Who::Smallest, Shape::Protobuf, MANY),
    way("ours-many", Who::Ours, Shape::Native, MANY),
    way("smallest-many", Who::Smallest, Shape::Native, MANY),
    way("raw-many", Who::Raw, Shape::Native, MANY),
    way("ours-feast-one", Who::Ours, Shape::Feast, 1),
    way("smallest-feast-one", Who::Smallest, Shape::Feast, 1),
    way("ours-feast-many", Who::Ours, Shape::Feast, MANY),
    way("smallest-feast-many", Who::Smallest, Shape::Feast, MANY),
];
