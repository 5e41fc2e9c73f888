//! A package index on loopback, as PEP 691 (JSON) or PEP 503 (HTML), over HTTP or TLS, also reached as a proxy.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// How the pages are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// PEP 691.
    Json,
    /// PEP 503.
    Html,
}

/// A file of the index: its package, file name, bytes, and the sha256 the page says.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Published {
    pub package: &'static str,
    pub name: String,
    pub bytes: Vec<u8>,
    pub sha256: String,
}

/// A running index; its thread ends with the test's process.
#[derive(Debug)]
pub struct PackageIndex {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl PackageIndex {
    /// Over HTTP.
    pub fn start(form: Form, files: Vec<Published>) -> PackageIndex {
        PackageIndex::serve(form, files, None)
    }

    /// The same over TLS, with `server.pem` and `server.key` of a folder.
    pub fn start_secured(form: Form, files: Vec<Published>, folder: &Path) -> PackageIndex {
        let chain: Vec<_> = CertificateDer::pem_file_iter(folder.join("server.pem"))
            .expect("server.pem")
            .collect::<Result<_, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).expect("server.key");
        // An error says that it was chosen before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("tls");
        PackageIndex::serve(form, files, Some(Arc::new(config)))
    }

    fn serve(form: Form, files: Vec<Published>, tls: Option<Arc<rustls::ServerConfig>>) -> PackageIndex {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(pages(form, files));
        let kept = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, kept, tls) = (answers.clone(), kept.clone(), tls.clone());
                // A client that does not trust us hangs up: nobody's error here.
                std::thread::spawn(move || match tls {
                    None => answer(stream, &answers, &kept),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).expect("connection");
                        answer(rustls::StreamOwned::new(connection, stream), &answers, &kept);
                    }
                });
            }
        });
        PackageIndex { address, requests }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What `--index` takes.
    pub fn url(&self) -> String {
        format!("http://{}/simple", self.address)
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("requests").clone()
    }
}

/// Path → content type and body.
type Answers = BTreeMap<String, (&'static str, Vec<u8>)>;

fn pages(form: Form, files: Vec<Published>) -> Answers {
    let mut answers = Answers::new();
    for file in files {
        let path = format!("/files/{}", file.name);
        let page = match form {
            Form::Json => serde_json::json!({
                "meta": { "api-version": "1.1" }, "name": file.package,
                "files": [{ "filename": file.name, "url": path, "hashes": { "sha256": file.sha256 } }],
            })
            .to_string(),
            Form::Html => format!(
                "<!DOCTYPE html><html><body><a href=\"../..{path}#sha256={}\">{}</a></body></html>",
                file.sha256, file.name
            ),
        };
        let kind = match form {
            Form::Json => "application/vnd.pypi.simple.v1+json",
            Form::Html => "text/html",
        };
        answers.insert(format!("/simple/{}/", file.package), (kind, page.into_bytes()));
        answers.insert(path, ("application/octet-stream", file.bytes));
    }
    answers
}

fn answer(mut stream: impl Read + Write, answers: &Answers, kept: &Mutex<Vec<String>>) {
    let mut head = String::new();
    let mut lines = BufReader::new(&mut stream);
    loop {
        match lines.read_line(&mut head) {
            Ok(0) | Err(_) => return,
            Ok(_) if head.ends_with("\r\n\r\n") => break,
            Ok(_) => {}
        }
    }
    let target = head.split(' ').nth(1).unwrap_or_default();
    // A proxy is asked for the whole address.
    let path = match target.strip_prefix("http://") {
        Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
        None => target,
    };
    let none = ("text/plain", b"no such page".to_vec());
    let (status, (kind, body)) = match answers.get(path) {
        Some(found) => ("200 OK", found),
        None => ("404 Not Found", &none),
    };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    kept.lock().expect("requests").push(head.clone());
    // A client that has what it wants may be gone.
    let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
}

/// A wheel of the files of a folder below `inside`.
pub fn wheel(folder: &Path, inside: &str) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let mut names: Vec<_> =
        std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    for name in names {
        let name = name.to_string_lossy();
        zip.start_file(format!("{inside}/{name}"), SimpleFileOptions::default()).expect("entry");
        zip.write_all(&std::fs::read(folder.join(&*name)).expect("file")).expect("bytes");
    }
    zip.finish().expect("wheel").into_inner()
}
