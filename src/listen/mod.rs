//! Ports: accepting connections, and serving HTTP/1.1 and HTTP/2 on them within limits, so that slow and greedy clients harm
//! themselves alone.
//!
//! In: a bound socket, routes, limits, TLS or none. Out: served connections until told to stop. Callers: `cli::ports`, for the
//! public, the OpenAI-compatible and the operators' port. [`serve`] is the loop; a connection is whatever reads and writes bytes, and
//! `handshake` goes between the two where the port speaks TLS. `activity` knows what a connection is doing, `stream` sees its bytes, `refusal` gives a body
//! to what hyper refuses by itself, `files` minds the process's open files.

mod activity;
mod connection;
mod files;
mod handshake;
mod port;
mod refusal;
mod slots;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::Routes;
pub use files::{SpareFiles, connections_within, raise_open_files};
pub use port::{Port, PortLimits, serve};
pub use refusal::Refusal;
