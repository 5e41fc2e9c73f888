//! A server's certificate with its chain and its private key, as PEM files hold them.

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use thiserror::Error;
use x509_cert::der::Decode;
use x509_cert::time::{Time, Validity};

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Why a certificate cannot be shown. Nothing of a file's content stands in a message.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The file is not there, or may not be read.
    #[error("{file}: {error}")]
    Unreadable {
        /// Path.
        file: String,
        /// The system's words.
        error: std::io::Error,
    },
    /// What the files hold is no certificate and its key.
    #[error("{0}")]
    Broken(String),
    /// It is over.
    #[error("the certificate, or one of its chain, expired {days} days ago; renew it")]
    Expired {
        /// Whole days.
        days: i64,
    },
    /// It has not begun.
    #[error("the certificate, or one of its chain, is valid in {days} days only; is the clock of this machine right?")]
    NotYet {
        /// Whole days.
        days: i64,
    },
}

/// A chain that belongs to its key; when it is valid is known, but not whether that is now.
#[derive(Debug, Clone)]
pub struct Certificate {
    shown: Arc<CertifiedKey>,
    /// When all of the chain has begun, in Unix seconds.
    not_before: i64,
    /// When the first of the chain ends, in Unix seconds.
    not_after: i64,
}

impl Certificate {
    /// Out of PEM: the server's certificate first, then those that signed it; a key without a passphrase.
    pub fn parse(chain: &[u8], key: &[u8]) -> Result<Certificate, CertificateError> {
        let broken = |message: &str| CertificateError::Broken(message.to_string());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| broken("the certificate file is no whole PEM"))?;
        if chain.is_empty() {
            return Err(broken("the certificate file holds no PEM certificate (-----BEGIN CERTIFICATE-----)"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            broken("the key file holds no whole PEM private key without a passphrase (-----BEGIN PRIVATE KEY-----)")
        })?;
        let (mut not_before, mut not_after) = (i64::MIN, i64::MAX);
        for certificate in &chain {
            let of_one = validity(certificate).ok_or_else(|| broken("a certificate of the file is no X.509"))?;
            not_before = not_before.max(seconds(of_one.not_before));
            not_after = not_after.min(seconds(of_one.not_after));
        }
        let shown = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => broken("the key is not that of the certificate"),
            other => CertificateError::Broken(format!("certificate or key cannot be used: {other}")),
        })?;
        Ok(Certificate { shown: Arc::new(shown), not_before, not_after })
    }

    /// An error outside of its time; `now` in Unix seconds.
    pub fn check_time(&self, now: i64) -> Result<(), CertificateError> {
        if now >= self.not_after {
            return Err(CertificateError::Expired { days: (now - self.not_after) / DAY });
        }
        if now < self.not_before {
            return Err(CertificateError::NotYet { days: (self.not_before - now) / DAY });
        }
        Ok(())
    }

    /// When it ends, in Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whole days left.
    pub fn days_left(&self, now: i64) -> i64 {
        (self.not_after - now).div_euclid(DAY)
    }

    /// What rustls shows.
    pub(super) fn shown(&self) -> Arc<CertifiedKey> {
        self.shown.clone()
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    Some(x509_cert::Certificate::from_der(certificate).ok()?.tbs_certificate.validity)
}

fn seconds(time: Time) -> i64 {
    i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::unix_ms;
    use testkit::certificates::{make_certificates, sign_server};

    fn of(folder: &std::path::Path, name: &str) -> Result<Certificate, CertificateError> {
        let read = |file: String| std::fs::read(folder.join(file)).expect("a file");
        Certificate::parse(&read(format!("{name}.pem")), &read(format!("{name}.key")))
    }

    #[test]
    fn a_certificate_says_when_it_ends_and_is_refused_outside_of_its_time() {
        let folder = tempfile::tempdir().expect("tempdir");
        make_certificates(folder.path());
        sign_server(folder.path(), "over", -1);
        let now = unix_ms() / 1000;
        let good = of(folder.path(), "server").expect("good");
        assert!(good.check_time(now).is_ok() && (1..=2).contains(&good.days_left(now)), "{}", good.days_left(now));
        assert!(matches!(good.check_time(now - 10 * DAY), Err(CertificateError::NotYet { days: 9 | 10 })));
        let over = of(folder.path(), "over").expect("whole, if late");
        assert!(matches!(over.check_time(now), Err(CertificateError::Expired { days: 1 })) && over.days_left(now) < 0);
    }

    #[test]
    fn halves_and_pairs_that_do_not_belong_together_are_refused_without_a_word_of_the_key() {
        let folder = tempfile::tempdir().expect("tempdir");
        make_certificates(folder.path());
        sign_server(folder.path(), "other", 2);
        let read = |name: &str| std::fs::read(folder.path().join(name)).expect(name);
        let (chain, key, other) = (read("server.pem"), read("server.key"), read("other.key"));
        let secret = String::from_utf8_lossy(&key).lines().nth(1).expect("a line").to_string();
        let both = [chain.clone(), read("ca.pem")].concat();
        for (chain, key, part) in [
            (&chain[..0], &key[..], "no PEM certificate"),
            (&chain[..chain.len() / 2], &key, "no whole PEM"),
            (&both[..chain.len() + 100], &key, "no whole PEM"),
            (&chain, &key[..key.len() / 2], "key file"),
            (&chain, &chain, "key file"),
            (&chain, &other, "not that of the certificate"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, "no X.509"),
        ] {
            let told = Certificate::parse(chain, key).expect_err(part).to_string();
            assert!(told.contains(part) && !told.contains(&secret), "{told}");
        }
        assert!(Certificate::parse(&both, &key).is_ok(), "with its authority");
    }
}
