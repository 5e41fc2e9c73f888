//! End-to-end tests of the trainer: the built program from outside, and what it makes beside what the service does with it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod align;
mod convert;
mod elsewhere;
mod full_disk;
mod lift;
mod packages;
mod progress;
mod quality;
mod reasons;
mod recipe;
mod train_serve;
mod trainer;
