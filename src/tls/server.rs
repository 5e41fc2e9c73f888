//! What the ports of a process show: one certificate, which can be exchanged while connections stand.

use super::{Certificate, CertificateError};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// What we speak within TLS, the better first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Shared by all ports.
pub struct ServerTls {
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    /// Whatever name the client asks for: there is one.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ServerTls {
    /// TLS 1.2 and 1.3, without certificates of clients.
    pub fn new(certificate: &Certificate) -> Result<ServerTls, CertificateError> {
        let shown = Arc::new(Shown(ArcSwap::new(certificate.shown())));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| CertificateError::Broken(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(ServerTls { shown, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// From now on handshakes show this one.
    pub fn replace(&self, certificate: &Certificate) {
        self.shown.0.store(certificate.shown());
    }

    /// Makes a handshake of a connection's bytes.
    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}
