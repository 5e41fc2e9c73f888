//! `store.url` of a Redis: `redis://`, `rediss://` (TLS), `redis+cluster://` and `rediss+cluster://` with several nodes.
//!
//! In: the text. Out: an [`Address`], or what is wrong with it, never with the password in it. Callers: `config`, the
//! store, `taiji migrate`.

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates};

/// Host and port of one node.
pub type Node = (String, u16);

/// Where a Redis is and how to enter it.
#[derive(Clone)]
pub struct Address {
    /// Nodes to ask first; one when it is no cluster.
    pub seeds: Vec<Node>,
    /// Whether the keys are spread over slots.
    pub cluster: bool,
    tls: bool,
    login: RedisConnectionInfo,
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

    /// The address of that text.
    pub fn parse(url: &str) -> Result<Address, String> {
        let shape = "must be redis://[user:password@]host[:port][/db], rediss://… for TLS, or redis+cluster://host:port,host:port";
        let (scheme, rest) = url.split_once("://").ok_or(format!("a redis url {shape}"))?;
        let (tls, cluster) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+cluster" => (false, true),
            "rediss+cluster" => (true, true),
            _ => return Err(format!("scheme {scheme:?} is unknown; a redis url {shape}")),
        };
        let (login, hosts) = match rest.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), rest),
        };
        let (hosts, path) = hosts.split_once('/').unwrap_or((hosts, ""));
        if cluster && !matches!(path, "" | "0") {
            return Err("a redis cluster has database 0 only".into());
        }
        let single = if tls { "rediss" } else { "redis" };
        let mut seeds = Vec::new();
        let mut settings = None;
        for host in hosts.split(',') {
            if !cluster && !seeds.is_empty() {
                return Err(format!("several hosts need redis+cluster://; a redis url {shape}"));
            }
            let one: ConnectionInfo = format!("{single}://{login}{host}/{path}")
                .into_connection_info()
                .map_err(|_| format!("host {host:?} or the login before it is not readable; a redis url {shape}"))?;
            seeds.push(match one.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
                _ => return Err(format!("a redis url {shape}")),
            });
            settings = Some(one.redis_settings().clone());
        }
        let login = settings.ok_or(format!("a redis url {shape}"))?;
        Ok(Address { seeds, cluster, tls, login, authority: None })
    }

    /// Trusts that authority (PEM) instead of the public ones.
    pub fn with_authority(self, pem: Vec<u8>) -> Address {
        Address { authority: Some(pem), ..self }
    }

    /// For logs: scheme and hosts.
    pub fn printable(&self) -> String {
        let hosts: Vec<String> = self.seeds.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let scheme = if self.tls { "rediss" } else { "redis" };
        let cluster = if self.cluster { "+cluster" } else { "" };
        format!("{scheme}{cluster}://{}", hosts.join(","))
    }

    /// A client for one node.
    pub fn client(&self, node: &Node) -> redis::RedisResult<Client> {
        let (host, port) = node.clone();
        let address = match self.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        };
        let info = address.into_connection_info()?.set_redis_settings(self.login.clone());
        match &self.authority {
            Some(pem) if self.tls => {
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) })
            }
            _ => Client::open(info),
        }
    }
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
    fn bad_urls_say_what_is_wrong_without_the_password() {
        let bad =
            ["redis://a,b", "redis+cluster://:secret@a/3", "redis+x://:secret@a", "redis:a", "redis://:secret@a:port"];
        for url in bad {
            let message = Address::parse(url).unwrap_err();
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
