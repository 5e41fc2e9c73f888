//! The way to a server: TCP or TLS, and the login. In: an address. Out: a stream that takes commands.

use super::super::address::{Address, Node};
use super::ReadError;
use super::command;
use super::reply::Framer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer to a login.
const LONGEST: usize = 4 << 10;
/// After so long without a word the system asks whether the server is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Any of the two ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects and logs in, within that time.
pub(super) async fn open(address: &Address, node: &Node, limit: Duration) -> Result<Box<dyn Stream>, ReadError> {
    let opened = async {
        let mut stream = connect(address, node).await?;
        log_in(&mut stream, address).await?;
        Ok(stream)
    };
    let late = || ReadError::Connect(format!("not within {} ms", limit.as_millis()));
    tokio::time::timeout(limit, opened).await.unwrap_or_else(|_| Err(late()))
}

async fn connect(address: &Address, (host, port): &Node) -> Result<Box<dyn Stream>, ReadError> {
    let failed = |error: std::io::Error| ReadError::Connect(error.to_string());
    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    // A quiet connection that something on the way has forgotten is found before the next read needs it.
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE)).map_err(failed)?;
    if !address.is_tls() {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.clone()).map_err(|error| ReadError::Connect(error.to_string()))?;
    let config = tls(address.authority()).map_err(ReadError::Connect)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
    Ok(Box::new(stream))
}

/// Trusts that authority (PEM), or the public ones.
fn tls(authority: Option<&[u8]>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match authority {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| error.to_string())?;
                roots.add(certificate).map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

async fn log_in(stream: &mut Box<dyn Stream>, address: &Address) -> Result<(), ReadError> {
    let login = address.login();
    let (mut out, mut replies) = (Vec::new(), 0);
    match (login.username(), login.password()) {
        (Some(user), Some(password)) => command(&mut out, &["AUTH", user, password]),
        (None, Some(password)) => command(&mut out, &["AUTH", password]),
        (_, None) => {}
    }
    replies += usize::from(!out.is_empty());
    if login.db() != 0 {
        command(&mut out, &["SELECT", &login.db().to_string()]);
        replies += 1;
    }
    // A server that has no room for us accepts, says so and hangs up: it must have answered.
    command(&mut out, &["PING"]);
    replies += 1;
    let failed = |error: std::io::Error| ReadError::Login(error.to_string());
    stream.write_all(&out).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let (mut framer, mut answer, mut at) = (Framer::default(), Vec::new(), 0);
    while replies > 0 {
        let Some(end) = framer.end(&answer)? else {
            let read = stream.read_buf(&mut answer).await.map_err(failed)?;
            if read == 0 {
                return Err(ReadError::Login("the server hung up".into()));
            }
            if answer.len() > LONGEST {
                return Err(ReadError::Malformed("too long for a login"));
            }
            continue;
        };
        if answer[at] == b'-' {
            return Err(ReadError::Login(String::from_utf8_lossy(&answer[at..end]).trim().to_string()));
        }
        (at, replies) = (end, replies - 1);
    }
    Ok(())
}
