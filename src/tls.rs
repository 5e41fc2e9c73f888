//! The TLS implementation of the process's outgoing HTTP calls.

/// Chooses ring for every client made from now on; reqwest panics where nobody has chosen. Cheap, any number of times.
pub fn choose_provider() {
    // An error says that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
