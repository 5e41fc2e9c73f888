//! Keys and certificates that lie in files of their own: read at the start, and again when what the files hold changes.
//!
//! In: `auth.keys_file`, `[tls]`. Out: what the ports ask of callers and show them. Callers: `serve`; `doctor` reads the same.
//!
//! The files are read every second and compared by content: that sees a write, a rename and a swapped symbolic link (as Kubernetes
//! renews a mounted Secret) on every file system alike. What is broken at two looks is told once; at one it may be half written.

use super::CommandError;
use super::wiring::wait;
use crate::clock::unix_ms;
use crate::config::{PortName, ScopedKeys, Settings, TlsSettings};
use crate::http::ApiKeys;
use crate::telemetry::Metrics;
use crate::telemetry::events::FileReloaded;
use crate::tls::{Certificate, CertificateError, ServerTls};
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

const INTERVAL_MS: u64 = 1_000;

/// What the ports ask of callers and show them.
pub(super) struct Secrets {
    pub keys: ApiKeys,
    tls: Option<Arc<ServerTls>>,
    ports: TlsSettings,
    followed: Vec<Followed>,
    /// When the certificate ends; 0 without one.
    certificate_ends: i64,
}

impl Secrets {
    /// Reads what the settings name. A file that is away, or a certificate outside of its time, is something needed that is not
    /// there; a broken one is bad configuration.
    pub fn open(settings: &Settings) -> Result<Secrets, CommandError> {
        let (auth, ports) = (&settings.auth, settings.tls.clone());
        let keys = ApiKeys::default();
        let (mut followed, mut tls, mut certificate_ends) = (Vec::new(), None, 0);
        let own = match auth.keys_file.as_str() {
            "" => auth.own_keys(),
            file => {
                // What is compared is read first: a change meanwhile is found by the first look.
                followed.push(Followed::of(Taker::Keys(keys.clone()), &[file], seen_now(&[file])));
                read_keys(file)?
            }
        };
        replace(&keys, &own);
        if ports.is_on() {
            let files = [ports.certificate_file.as_str(), &ports.key_file];
            let before = seen_now(&files);
            let certificate = read_certificate(&ports)?;
            certificate_ends = certificate.not_after();
            let made = Arc::new(ServerTls::new(&certificate).map_err(|error| refused(&ports, &error))?);
            followed.push(Followed::of(Taker::Tls(made.clone()), &files, before));
            tls = Some(made);
        }
        Ok(Secrets { keys, tls, ports, followed, certificate_ends })
    }

    /// What a port shows; `None` = it speaks plain HTTP.
    pub fn tls_of(&self, port: PortName) -> Option<Arc<ServerTls>> {
        self.tls.clone().filter(|_| self.ports.covers(port))
    }

    /// Looks at the files again and again, until `stop` turns true.
    pub fn follow(
        &mut self,
        metrics: Arc<Metrics>,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        metrics.certificate_ends.set(self.certificate_ends);
        let mut followed = std::mem::take(&mut self.followed);
        async move {
            while !followed.is_empty() && wait(INTERVAL_MS, &mut stop).await {
                for one in &mut followed {
                    let contents = one.read().await;
                    if let Some(result) = one.look(&contents, &metrics) {
                        FileReloaded { file: one.taker.label(), result: &result }.emit(&metrics);
                    }
                }
            }
        }
    }
}

fn replace(keys: &ApiKeys, by: &ScopedKeys) {
    keys.replace(&by.read_keys, &by.write_keys, &by.admin_keys);
}

/// The keys of a file.
pub(super) fn read_keys(file: &str) -> Result<ScopedKeys, CommandError> {
    let content = std::fs::read(file).map_err(|error| {
        CommandError::Unavailable(format!("auth.keys_file {file}: {error}; write it, or let us read it"))
    })?;
    ScopedKeys::parse(&content).map_err(|error| CommandError::Usage(format!("auth.keys_file {file}: {error}")))
}

/// The certificate of the ports, which is valid now.
pub(super) fn read_certificate(tls: &TlsSettings) -> Result<Certificate, CommandError> {
    let read =
        |file: &String| std::fs::read(file).map_err(|error| CertificateError::Unreadable { file: file.clone(), error });
    let read_both = || valid_now(&read(&tls.certificate_file)?, &read(&tls.key_file)?);
    read_both().map_err(|error| refused(tls, &error))
}

/// A chain and its key, within their time.
fn valid_now(chain: &[u8], key: &[u8]) -> Result<Certificate, CertificateError> {
    let certificate = Certificate::parse(chain, key)?;
    certificate.check_time(unix_ms() / 1000)?;
    Ok(certificate)
}

fn refused(tls: &TlsSettings, error: &CertificateError) -> CommandError {
    let message = format!("tls.certificate_file {}, tls.key_file {}: {error}", tls.certificate_file, tls.key_file);
    match error {
        CertificateError::Broken(_) => CommandError::Usage(message),
        _ => CommandError::Unavailable(message),
    }
}

/// Who takes what the files hold.
enum Taker {
    Keys(ApiKeys),
    Tls(Arc<ServerTls>),
}

impl Taker {
    /// Label in metrics and log.
    fn label(&self) -> &'static str {
        match self {
            Taker::Keys(_) => "keys",
            Taker::Tls(_) => "certificate",
        }
    }

    /// Takes the contents, or says why not and changes nothing.
    fn take(&self, contents: &[Vec<u8>], metrics: &Metrics) -> Result<(), String> {
        match (self, contents) {
            (Taker::Keys(keys), [file]) => replace(keys, &ScopedKeys::parse(file)?),
            (Taker::Tls(tls), [chain, key]) => {
                let certificate = valid_now(chain, key).map_err(|error| error.to_string())?;
                tls.replace(&certificate);
                metrics.certificate_ends.set(certificate.not_after());
            }
            _ => return Err(format!("{} files were read", contents.len())),
        }
        Ok(())
    }
}

/// What stood in files at one look, as a digest of content or kind of error.
type Seen = [u8; 32];

/// Files that are looked at again and again.
struct Followed {
    taker: Taker,
    files: Vec<String>,
    /// What was taken or refused last.
    judged: Seen,
    /// What was broken at the last look, and is not told yet.
    suspected: Option<Seen>,
}

impl Followed {
    /// `judged` is what the start took.
    fn of(taker: Taker, files: &[&str], judged: Seen) -> Followed {
        let files = files.iter().map(|file| file.to_string()).collect();
        Followed { taker, files, judged, suspected: None }
    }

    async fn read(&self) -> Vec<io::Result<Vec<u8>>> {
        let mut contents = Vec::new();
        for file in &self.files {
            contents.push(tokio::fs::read(Path::new(file)).await);
        }
        contents
    }

    /// Takes what is new; says what came of it, if that is worth a word.
    fn look(&mut self, contents: &[io::Result<Vec<u8>>], metrics: &Metrics) -> Option<Result<(), String>> {
        let seen = seen(contents);
        if self.judged == seen {
            self.suspected = None;
            return None;
        }
        match self.take(contents, metrics) {
            Ok(()) => {
                (self.judged, self.suspected) = (seen, None);
                Some(Ok(()))
            }
            Err(error) if self.suspected == Some(seen) => {
                (self.judged, self.suspected) = (seen, None);
                Some(Err(error))
            }
            Err(_) => {
                self.suspected = Some(seen);
                None
            }
        }
    }

    fn take(&self, contents: &[io::Result<Vec<u8>>], metrics: &Metrics) -> Result<(), String> {
        let mut whole = Vec::new();
        for (file, content) in self.files.iter().zip(contents) {
            whole.push(content.as_ref().map_err(|error| format!("{file}: {error}"))?.clone());
        }
        self.taker.take(&whole, metrics).map_err(|error| format!("{}: {error}", self.files.join(", ")))
    }
}

fn seen_now(files: &[&str]) -> Seen {
    let contents: Vec<io::Result<Vec<u8>>> = files.iter().map(std::fs::read).collect();
    seen(&contents)
}

fn seen(contents: &[io::Result<Vec<u8>>]) -> Seen {
    let mut digest = Sha256::new();
    for content in contents {
        match content {
            Ok(content) => digest.update(Sha256::digest(content)),
            Err(error) => digest.update(format!("{:?}", error.kind())),
        }
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Scope;
    use axum::http::{HeaderMap, HeaderValue, header};

    const ONE: &str = "read_keys = [\"read-key-0000000001\"]\nwrite_keys = []\nadmin_keys = []\n";
    const TWO: &str = "read_keys = [\"read-key-0000000002\"]\nwrite_keys = []\nadmin_keys = []\n";

    fn opens(keys: &ApiKeys, key: &'static str) -> bool {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(key))]);
        keys.require(&headers, Scope::Read).is_ok()
    }

    fn file(text: &str) -> Vec<io::Result<Vec<u8>>> {
        vec![Ok(text.as_bytes().to_vec())]
    }

    #[test]
    fn what_is_broken_at_two_looks_is_told_once_and_changes_nothing() {
        let (keys, metrics) = (ApiKeys::default(), Metrics::new().expect("metrics"));
        replace(&keys, &ScopedKeys::parse(ONE.as_bytes()).expect("keys"));
        let mut followed = Followed::of(Taker::Keys(keys.clone()), &["keys.toml"], seen(&file(ONE)));
        assert_eq!(followed.look(&file(ONE), &metrics), None, "what the start has read");
        for half in [&TWO[..30], "", "nonsense"] {
            assert_eq!(followed.look(&file(half), &metrics), None, "it may be half written");
            let told = followed.look(&file(half), &metrics).expect("told").expect_err("broken");
            assert!(told.contains("keys.toml") && !told.contains("read-key"), "{told}");
            assert_eq!(followed.look(&file(half), &metrics), None, "once");
            assert!(opens(&keys, "Bearer read-key-0000000001") && !keys.is_open());
        }
        assert_eq!(followed.look(&file(&TWO[..20]), &metrics), None);
        assert_eq!(followed.look(&file(TWO), &metrics), Some(Ok(())), "whole a moment later: no word of the half");
        assert!(opens(&keys, "Bearer read-key-0000000002") && !opens(&keys, "Bearer read-key-0000000001"));
        let away = || vec![Err(io::Error::from(io::ErrorKind::NotFound))];
        assert_eq!(followed.look(&away(), &metrics), None);
        assert!(followed.look(&away(), &metrics).expect("told").is_err());
        assert!(opens(&keys, "Bearer read-key-0000000002"), "a file that is gone withdraws nothing");
        assert_eq!(followed.look(&file(TWO), &metrics), Some(Ok(())), "and it is back");
    }
}
