//! A port that speaks TLS, met by rustls' own client and by those who do not shake hands.

use super::{Port, PortLimits, Routes, serve};
use crate::telemetry::Metrics;
use crate::tls::{Certificate, ServerTls, choose_provider};
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use futures::future::BoxFuture;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::certificates::{make_certificates, sign_server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const HEADER: Duration = Duration::from_millis(400);

struct Rig {
    folder: tempfile::TempDir,
    address: SocketAddr,
    tls: Arc<ServerTls>,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
}

fn certificate(folder: &Path, name: &str) -> Certificate {
    let read = |ending: &str| std::fs::read(folder.join(format!("{name}.{ending}"))).expect("file");
    Certificate::parse(&read("pem"), &read("key")).expect("a certificate")
}

impl Rig {
    async fn start(connections: usize) -> Rig {
        Rig::serving(connections, Arc::new(Router::new().route("/", get(|| async { "found" })))).await
    }

    async fn serving(connections: usize, routes: Arc<dyn Routes>) -> Rig {
        choose_provider();
        let folder = tempfile::tempdir().expect("tempdir");
        make_certificates(folder.path());
        let tls = Arc::new(ServerTls::new(&certificate(folder.path(), "server")).expect("tls"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let port = Port {
            name: "public",
            listener,
            routes,
            limits: PortLimits { connections, streams: 10, header: HEADER, idle: Duration::from_secs(60) },
            tls: Some(tls.clone()),
            refusal: |refusal| format!("{{\"code\":\"{}\"}}", refusal.code),
            spare: None,
            metrics: metrics.clone(),
        };
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(serve(port, stopped));
        Rig { folder, address, tls, metrics, stop }
    }

    async fn connect(&self, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let authority = CertificateDer::from_pem_file(self.folder.path().join("ca.pem")).expect("ca.pem");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).expect("an authority");
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn failed(&self, reason: &str) -> u64 {
        self.metrics.tls_handshakes_failed.with_label_values(&["public", reason]).get()
    }

    fn closed(&self, reason: &str) -> u64 {
        self.metrics.connections_closed.with_label_values(&["public", reason]).get()
    }

    /// Whole answer to a plain GET within TLS.
    async fn get(&self) -> String {
        let mut stream = self.connect(&[b"http/1.1"]).await.expect("a handshake");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer that ends with TLS' own goodbye");
        answer
    }
}

/// Waits until it is so; counters move when the server's task has run.
async fn until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "waited 20 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Of a process that leaves.
struct Leaving;

impl Routes for Leaving {
    fn answer(&self, request: Request) -> BoxFuture<'static, Response> {
        Router::new().route("/", get(|| async { "found" })).answer(request)
    }

    fn is_leaving(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn an_answer_of_who_leaves_ends_its_connection() {
    let rig = Rig::serving(2, Arc::new(Leaving)).await;
    let mut stream = rig.connect(&[b"http/1.1"]).await.expect("a handshake");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("a request");
    let mut answer = String::new();
    // To the end of the stream, which the server makes.
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.ends_with("found"), "{answer}");
}

#[tokio::test]
async fn both_protocols_are_offered_and_spoken() {
    let rig = Rig::start(8).await;
    assert!(rig.get().await.ends_with("found"));
    let mut both = rig.connect(&[b"h2", b"http/1.1"]).await.expect("a handshake");
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut frame = [0; 9];
    both.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("preface and settings");
    both.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame[3], 4, "SETTINGS");
    assert!(rig.connect(&[b"spdy/3"]).await.is_err(), "no protocol in common");
    until(|| rig.failed("failed") == 1).await;
}

#[tokio::test]
async fn who_says_nothing_or_too_little_goes_when_a_heads_time_is_over_and_gives_its_slot_back() {
    let rig = Rig::start(2).await;
    let (began, mut silent) = (Instant::now(), TcpStream::connect(rig.address).await.expect("connect"));
    let mut slow = TcpStream::connect(rig.address).await.expect("connect");
    slow.write_all(b"\x16\x03\x01\x02").await.expect("the beginning of a record");
    // Both slots are taken; a third comes in when they are free.
    assert!(rig.get().await.ends_with("found"));
    let took = began.elapsed();
    assert!(took >= HEADER / 2 && took < Duration::from_secs(10), "{took:?}");
    for stream in [&mut silent, &mut slow] {
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed");
    }
    until(|| rig.closed("header_timeout") == 2).await;
}

#[tokio::test]
async fn a_handshake_without_a_request_is_over_in_the_same_time() {
    let rig = Rig::start(2).await;
    let began = Instant::now();
    let mut stream = rig.connect(&[b"http/1.1"]).await.expect("a handshake");
    let end = stream.read(&mut [0; 8]).await.unwrap_or(0);
    assert_eq!(end, 0);
    assert!(began.elapsed() < HEADER + Duration::from_secs(5), "{:?}", began.elapsed());
    until(|| rig.closed("header_timeout") == 1).await;
}

#[tokio::test]
async fn plain_http_is_told_so_and_other_bytes_are_closed() {
    let rig = Rig::start(4).await;
    for body in [0, 300_000] {
        let mut plain = TcpStream::connect(rig.address).await.expect("connect");
        let head = format!("POST /v1/events HTTP/1.1\r\nhost: h\r\ncontent-length: {body}\r\n\r\n");
        plain.write_all(&[head.into_bytes(), vec![b'x'; body]].concat()).await.expect("a request");
        let mut answer = String::new();
        plain.read_to_string(&mut answer).await.expect("an answer, not a reset");
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.ends_with(r#"{"code":"tls_required"}"#));
    }
    let mut other = TcpStream::connect(rig.address).await.expect("connect");
    other.write_all(&[0x80, 0x2e, 1, 0]).await.expect("SSL 2");
    assert_eq!(other.read(&mut [0; 8]).await.unwrap_or(0), 0);
    until(|| rig.failed("plain_http") == 2 && rig.failed("no_tls") == 1).await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_handshake_on_and_old_connections_stay() {
    let rig = Rig::start(4).await;
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().expect("shown")[0].to_vec();
    let mut old = rig.connect(&[b"http/1.1"]).await.expect("a handshake");
    sign_server(rig.folder.path(), "next", 2);
    rig.tls.replace(&certificate(rig.folder.path(), "next"));
    let new = rig.connect(&[b"http/1.1"]).await.expect("a handshake");
    assert_ne!(shown(&old), shown(&new));
    old.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.expect("a request");
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.ends_with("found"), "{answer}");
    rig.stop.send_replace(true);
}
