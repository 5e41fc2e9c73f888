//! Bearer keys with scopes. Without any key configured a port is open (and `cli::serve` warns about it).

use super::ApiError;
use arc_swap::ArcSwap;
use axum::http::{HeaderMap, header};
use constant_time_eq::constant_time_eq_32;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What a key may do; admin may do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Scope {
    Read,
    Write,
    Admin,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Write => "write",
            Scope::Admin => "admin",
        }
    }
}

/// Which key a request came with: the beginning of its digest, so that it stays the same when others come and go. Where there
/// are no keys, all requests have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyNumber(u64);

/// The configured keys, as digests, so that they cannot be printed and comparing takes constant time. Clones share them.
#[derive(Clone, Default)]
pub struct ApiKeys {
    keys: Arc<ArcSwap<Digests>>,
}

type Digests = Vec<(Scope, [u8; 32])>;

impl ApiKeys {
    /// Keys by scope; two live keys each allow rotation.
    pub fn new(read: &[String], write: &[String], admin: &[String]) -> ApiKeys {
        let keys = ApiKeys::default();
        keys.replace(read, write, admin);
        keys
    }

    /// From now on these are the keys, here and in every clone.
    pub fn replace(&self, read: &[String], write: &[String], admin: &[String]) {
        let scoped = [(Scope::Read, read), (Scope::Write, write), (Scope::Admin, admin)];
        let keys = scoped.into_iter().flat_map(|(scope, keys)| keys.iter().map(move |key| (scope, digest(key))));
        self.keys.store(Arc::new(keys.collect()));
    }

    /// True when no key is configured.
    pub fn is_open(&self) -> bool {
        self.keys.load().is_empty()
    }

    /// Checks the request's bearer key for a scope. Tells which of the keys it is.
    pub fn require(&self, headers: &HeaderMap, scope: Scope) -> Result<KeyNumber, ApiError> {
        let granted = self.find(headers, |known| known == scope || known == Scope::Admin);
        granted.ok_or(ApiError::Unauthorized { scope: scope.as_str() })
    }

    /// Checks that the request has a key, of whatever scope.
    pub fn require_any(&self, headers: &HeaderMap) -> Result<KeyNumber, ApiError> {
        self.find(headers, |_| true).ok_or(ApiError::Unauthorized { scope: "read, write or admin" })
    }

    fn find(&self, headers: &HeaderMap, suits: impl Fn(Scope) -> bool) -> Option<KeyNumber> {
        let keys = self.keys.load();
        if keys.is_empty() {
            return Some(KeyNumber(0));
        }
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())?;
        let given = digest(value.strip_prefix("Bearer ")?);
        // Every key is compared, so that the time tells nothing about which one matched.
        let mut granted = None;
        for (scope, key) in keys.iter() {
            let matches = constant_time_eq_32(key, &given);
            if matches && suits(*scope) {
                granted = Some(KeyNumber(u64::from_be_bytes(std::array::from_fn(|nth| key[nth]))));
            }
        }
        granted
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn scopes_are_kept_apart_and_admin_may_all() {
        let keys = ApiKeys::new(&["r1".into(), "r2".into()], &["w".into()], &["a".into()]);
        assert!(keys.require(&headers("Bearer r2"), Scope::Read).is_ok());
        assert!(keys.require(&headers("Bearer r2"), Scope::Write).is_err());
        assert!(keys.require(&headers("Bearer a"), Scope::Write).is_ok());
        assert!(keys.require(&headers("r1"), Scope::Read).is_err());
        assert!(keys.require(&HeaderMap::new(), Scope::Read).is_err());
        assert!(ApiKeys::default().require(&HeaderMap::new(), Scope::Admin).is_ok());
    }

    #[test]
    fn keys_change_in_every_clone_and_one_that_stays_is_the_same_to_budgets() {
        let keys = ApiKeys::new(&["r1".into(), "r2".into()], &[], &[]);
        let (clone, before) = (keys.clone(), keys.require(&headers("Bearer r2"), Scope::Read).expect("a key"));
        keys.replace(&["r2".into()], &[], &["a".into()]);
        assert!(clone.require(&headers("Bearer r1"), Scope::Read).is_err(), "withdrawn");
        assert!(clone.require(&headers("Bearer a"), Scope::Admin).is_ok(), "new");
        assert_eq!(clone.require(&headers("Bearer r2"), Scope::Read).expect("kept"), before);
    }
}
