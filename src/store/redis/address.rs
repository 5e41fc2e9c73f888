//! `store.url` of a Redis: `redis://`, `rediss://` (TLS), `redis+cluster://` and `rediss+cluster://` with several nodes,
//! `redis+sentinel://` and `rediss+sentinel://` with several sentinels and the name they know the master by.
//!
//! In: the text. Out: an [`Address`], or what is wrong with it, never with the password in it. Callers: `config`, the
//! store, `taiji migrate`.

use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates, TlsMode,
};

/// Host and port of one node.
pub type Node = (String, u16);

/// What a url must look like.
const SHAPE: &str = "must be redis://[user:password@]host[:port][/db], rediss://… for TLS, redis+cluster://host:port,host:port, or \
                     redis+sentinel://host:port,host:port/MASTER[/db]";
/// Where a sentinel listens if nothing else is said.
const SENTINEL_PORT: u16 = 26379;

/// Where a Redis is and how to enter it.
#[derive(Clone)]
pub struct Address {
    /// Whom to ask first: nodes of a cluster, sentinels, or the one server.
    pub seeds: Vec<Node>,
    /// Whether the keys are spread over slots.
    pub cluster: bool,
    /// The name by which the sentinels at `seeds` know the master; `None` where there are none.
    pub service: Option<String>,
    tls: bool,
    /// Of the servers that hold keys.
    login: RedisConnectionInfo,
    /// Of the sentinels.
    sentinel_login: RedisConnectionInfo,
    /// PEM of the authority that signed the server's certificate; `None` = the public ones.
    authority: Option<Vec<u8>>,
}

/// Passwords never reach a log.
impl std::fmt::Debug for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.printable())
    }
}

impl Address {
    /// Whether the text names a Redis at all.
    pub fn is_redis(url: &str) -> bool {
        url.starts_with("redis:")
            || url.starts_with("rediss:")
            || url.starts_with("redis+")
            || url.starts_with("rediss+")
    }

    /// Whether the text names sentinels.
    pub fn is_sentinel(url: &str) -> bool {
        url.starts_with("redis+sentinel:") || url.starts_with("rediss+sentinel:")
    }

    /// The address of that text.
    pub fn parse(url: &str) -> Result<Address, String> {
        let (scheme, rest) = url.split_once("://").ok_or(format!("a redis url {SHAPE}"))?;
        let (single, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match single {
            "redis" => false,
            "rediss" => true,
            _ => return Err(format!("scheme {scheme:?} is unknown; a redis url {SHAPE}")),
        };
        let (cluster, sentinels) = match kind {
            "" if scheme == single => (false, false),
            "cluster" => (true, false),
            "sentinel" => (false, true),
            _ => return Err(format!("scheme {scheme:?} is unknown; a redis url {SHAPE}")),
        };
        let (login, hosts) = match rest.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), rest),
        };
        let (hosts, path) = hosts.split_once('/').unwrap_or((hosts, ""));
        if cluster && !matches!(path, "" | "0") {
            return Err("a redis cluster has database 0 only".into());
        }
        let (service, database) = if sentinels { service_of(path)? } else { (None, path) };
        if !cluster && !sentinels && hosts.contains(',') {
            return Err(format!("several hosts need redis+cluster:// or redis+sentinel://; a redis url {SHAPE}"));
        }
        let mut seeds = Vec::new();
        let mut settings = None;
        for host in hosts.split(',') {
            let has_port = host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
            let port = if sentinels && !has_port { format!(":{SENTINEL_PORT}") } else { String::new() };
            let one: ConnectionInfo = format!("{single}://{login}{host}{port}/{database}")
                .into_connection_info()
                .map_err(|_| format!("host {host:?} or the login before it is not readable; a redis url {SHAPE}"))?;
            seeds.push(match one.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
                _ => return Err(format!("a redis url {SHAPE}")),
            });
            settings = Some(one.redis_settings().clone());
        }
        let login = settings.ok_or(format!("a redis url {SHAPE}"))?;
        let sentinel_login = RedisConnectionInfo::default();
        Ok(Address { seeds, cluster, service, tls, login, sentinel_login, authority: None })
    }

    /// Trusts that authority (PEM) instead of the public ones.
    pub fn with_authority(self, pem: Vec<u8>) -> Address {
        Address { authority: Some(pem), ..self }
    }

    /// Logs in at the sentinels as that user; an empty name is the default user, an empty password none.
    pub fn with_sentinel_login(self, user: &str, password: &str) -> Address {
        let mut sentinel_login = RedisConnectionInfo::default();
        if !user.is_empty() {
            sentinel_login = sentinel_login.set_username(user);
        }
        if !password.is_empty() {
            sentinel_login = sentinel_login.set_password(password);
        }
        Address { sentinel_login, ..self }
    }

    /// Whether servers are spoken to over TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// How the servers that hold keys are entered.
    pub(super) fn login(&self) -> &RedisConnectionInfo {
        &self.login
    }

    /// PEM of the authority that is trusted instead of the public ones.
    pub(super) fn authority(&self) -> Option<&[u8]> {
        self.authority.as_deref()
    }

    /// For logs: scheme, hosts, and the master's name where there are sentinels.
    pub fn printable(&self) -> String {
        let hosts: Vec<String> = self.seeds.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let scheme = if self.tls { "rediss" } else { "redis" };
        let kind = match &self.service {
            Some(_) => "+sentinel",
            None if self.cluster => "+cluster",
            None => "",
        };
        let service = self.service.iter().map(|service| format!("/{service}")).collect::<String>();
        format!("{scheme}{kind}://{}{service}", hosts.join(","))
    }

    /// What finds the master through the sentinels; `None` where there are none.
    pub fn sentinels(&self) -> Option<redis::RedisResult<SentinelClient>> {
        let service = self.service.as_ref()?;
        let hosts = self.seeds.iter().map(|seed| self.endpoint(seed));
        let build = || {
            let mut builder = SentinelClientBuilder::new(hosts, service, SentinelServerType::Master)?
                .set_client_to_redis_db(self.login.db())
                .set_client_to_redis_protocol(self.login.protocol());
            if let Some(user) = self.login.username() {
                builder = builder.set_client_to_redis_username(user);
            }
            if let Some(password) = self.login.password() {
                builder = builder.set_client_to_redis_password(password);
            }
            if let Some(user) = self.sentinel_login.username() {
                builder = builder.set_client_to_sentinel_username(user);
            }
            if let Some(password) = self.sentinel_login.password() {
                builder = builder.set_client_to_sentinel_password(password);
            }
            if self.tls {
                builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            }
            if let Some(certificates) = self.certificates() {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates);
            }
            builder.build()
        };
        Some(build())
    }

    /// A client for one sentinel.
    pub fn sentinel(&self, node: &Node) -> redis::RedisResult<Client> {
        self.open(node, &self.sentinel_login)
    }

    /// A client for one node.
    pub fn client(&self, node: &Node) -> redis::RedisResult<Client> {
        self.open(node, &self.login)
    }

    fn open(&self, node: &Node, login: &RedisConnectionInfo) -> redis::RedisResult<Client> {
        let info = self.endpoint(node).into_connection_info()?.set_redis_settings(login.clone());
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    }

    fn endpoint(&self, node: &Node) -> ConnectionAddr {
        let (host, port) = node.clone();
        match self.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        }
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let authority = self.authority.as_ref().filter(|_| self.tls)?;
        Some(TlsCertificates { client_tls: None, root_cert: Some(authority.clone()) })
    }
}

/// The master's name and the database of a path `MASTER[/db]`.
fn service_of(path: &str) -> Result<(Option<String>, &str), String> {
    let (service, database) = path.split_once('/').unwrap_or((path, ""));
    // What Sentinel itself allows.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if service.is_empty() || !service.bytes().all(is_name) {
        return Err(format!(
            "redis+sentinel:// needs the name by which the sentinels know the master; a redis url {SHAPE}"
        ));
    }
    Ok((Some(service.to_string()), database))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_become_addresses_and_never_show_the_password() {
        let one = Address::parse("rediss://me:p%40ss@host:7000/2").unwrap();
        assert_eq!((one.seeds.clone(), one.cluster, one.tls), (vec![("host".to_string(), 7000)], false, true));
        assert_eq!((one.login.password(), one.login.db()), (Some("p@ss"), 2));
        assert_eq!(format!("{one:?}"), "rediss://host:7000");
        let many = Address::parse("redis+cluster://:secret@a:1,b:2").unwrap();
        assert_eq!(many.seeds, [("a".to_string(), 1), ("b".to_string(), 2)]);
        assert_eq!(Address::parse("redis://h").unwrap().seeds, [("h".to_string(), 6379)]);
    }

    #[test]
    fn audit_10_a_sentinel_url_names_sentinels_and_the_master() {
        let address = Address::parse("rediss+sentinel://me:pw@a,[::1]:7,c:9/my-master/3").unwrap();
        let seeds = [("a".to_string(), 26379), ("::1".to_string(), 7), ("c".to_string(), 9)];
        assert_eq!((&address.seeds[..], address.service.as_deref()), (&seeds[..], Some("my-master")));
        assert_eq!((address.login.username(), address.login.db(), address.cluster), (Some("me"), 3, false));
        assert!(address.sentinel_login.password().is_none(), "the servers' login is not the sentinels'");
        let address = address.with_sentinel_login("", "secret");
        assert_eq!((address.sentinel_login.username(), address.sentinel_login.password()), (None, Some("secret")));
        assert_eq!(address.printable(), "rediss+sentinel://a:26379,::1:7,c:9/my-master");
        assert!(address.sentinels().unwrap().is_ok());
    }

    #[test]
    fn bad_urls_say_what_is_wrong_without_the_password() {
        let bad = [
            "redis://a,b",
            "redis+cluster://:secret@a/3",
            "redis+x://:secret@a",
            "redis+://:secret@a",
            "redis:a",
            "redis://:secret@a:port",
            "redis+sentinel://:secret@a:1,b:2",
            "redis+sentinel://:secret@a:1/",
            "redis+sentinel://:secret@a:1/a%20name",
            "redis+sentinel://:secret@a:1/name/db",
        ];
        for url in bad {
            let message = Address::parse(url).unwrap_err();
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
