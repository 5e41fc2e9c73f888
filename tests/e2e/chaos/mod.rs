//! Parts of the chaos suite: what may happen to the data plane, and what must come out of it all the same.
//!
//! `stream` makes events whose end is known and checks a history against it; `proxy` is a network that can be cut. Each is
//! tested by itself here; the suite that lets things happen at random follows with the Redis store.

mod proxy;
mod stream;
