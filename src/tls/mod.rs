//! TLS: the implementation of outgoing HTTP calls, and what our own ports show and speak.
//!
//! In: PEM files. Out: a checked [`Certificate`]; [`ServerTls`], which shows one that can be exchanged while connections stand.
//! Callers: `packages` and `cli` choose the implementation; `cli` reads the files, `listen` shakes hands.

mod certificate;
mod server;

pub use certificate::{Certificate, CertificateError};
pub use server::ServerTls;

/// Chooses ring for every client made from now on; reqwest panics where nobody has chosen. Cheap, any number of times.
pub fn choose_provider() {
    // An error says that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
