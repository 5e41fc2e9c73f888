//! Who is the master, by the word of Redis Sentinel.
//!
//! In: an [`Address`] that names sentinels. Out: the master's node, or why nobody can say. Callers: `link`, when it opens and
//! whenever a node is lost or refuses writes as a replica does; `watch`, while a node leaves a PING without an answer, and, twice
//! a second, with a look at one sentinel that costs no new connection.
//!
//! The client library asks the sentinels, at most three at once, and takes the master one of them names only if that node
//! calls itself a master, too (by ROLE, or INFO where ROLE is not allowed). One question is under way at a time however many wait
//! for its answer, and it goes on when they wait no longer: a read whose time is over must not throw away what the next one needs.

use super::address::{Address, Node};
use super::errors;
use super::link::name;
use crate::store::{StoreError, StoreResult};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::sentinel::SentinelClient;
use redis::{AsyncConnectionConfig, ConnectionAddr, ErrorKind, RedisError};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// For one sentinel's answer; as long as the client library waits for a connection.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A question that is under way.
type Asking = Shared<BoxFuture<'static, Result<Node, RedisError>>>;

/// Connections to the sentinels, for [`Sentinels::glance`].
#[derive(Default)]
pub struct Glance {
    connections: HashMap<Node, MultiplexedConnection>,
    looks: usize,
}

/// The sentinels of an address.
pub struct Sentinels {
    address: Address,
    client: Arc<tokio::sync::Mutex<SentinelClient>>,
    asking: Mutex<Option<Asking>>,
}

impl Sentinels {
    /// Those that the address names; `None` where it names none.
    pub fn of(address: &Address) -> StoreResult<Option<Sentinels>> {
        let Some(client) = address.sentinels() else { return Ok(None) };
        let unusable = |error: RedisError| StoreError::Open { place: address.printable(), message: error.to_string() };
        let client = Arc::new(tokio::sync::Mutex::new(client.map_err(unusable)?));
        Ok(Some(Sentinels { address: address.clone(), client, asking: Mutex::default() }))
    }

    /// The master now.
    pub async fn master(&self) -> Result<Node, RedisError> {
        let asking = self.asking.lock().get_or_insert_with(|| self.begin()).clone();
        let answer = asking.clone().await;
        let mut current = self.asking.lock();
        // Somebody else may have begun anew.
        if current.as_ref().is_some_and(|current| current.ptr_eq(&asking)) {
            *current = None;
        }
        answer
    }

    /// Whom the next of the sentinels names, whether that is a master by now or not; `None` where it cannot say. Costs no more than
    /// a command.
    pub async fn glance(&self, glance: &mut Glance) -> Option<Node> {
        let seed = &self.address.seeds[glance.looks % self.address.seeds.len()];
        glance.looks += 1;
        let mut connection = match glance.connections.remove(seed) {
            Some(connection) => connection,
            None => connect(&self.address, seed).await.ok()?,
        };
        let mut masters = masters(&mut connection).await.ok()?;
        glance.connections.insert(seed.clone(), connection);
        masters.remove(self.address.service.as_deref()?)
    }

    /// Why they name no master, in our words.
    pub fn failed(&self, operation: &'static str, error: &RedisError) -> StoreError {
        let place = self.words();
        match errors::failed(operation, &place, error) {
            StoreError::Denied { .. } => StoreError::Denied {
                operation,
                message: format!(
                    "{place}: user, password or a permission is refused ({error}), by a sentinel (store.sentinel_user, \
                     store.sentinel_password) or by the master it names (store.url)"
                ),
            },
            StoreError::Engine { .. } if error.kind() == ErrorKind::MasterNameNotFoundBySentinel => {
                StoreError::Open { place: self.address.printable(), message: error.to_string() }
            }
            other => other,
        }
    }

    /// For messages: whom we ask, and for whom.
    pub fn words(&self) -> String {
        let hosts: Vec<String> = self.address.seeds.iter().map(name).collect();
        let service = self.address.service.as_deref().unwrap_or_default();
        format!("sentinels {} asked for the master of {service:?}", hosts.join(", "))
    }

    fn begin(&self) -> Asking {
        let (client, address) = (self.client.clone(), self.address.clone());
        let task = tokio::spawn(async move {
            let found = client.lock().await.async_get_client().await;
            match found {
                Ok(client) => node_of(client.get_connection_info().addr()),
                Err(error) if error.kind() == ErrorKind::MasterNameNotFoundBySentinel => Err(explain(&address).await),
                Err(error) => Err(error),
            }
        });
        let ended = |ended: Result<_, tokio::task::JoinError>| {
            ended.unwrap_or_else(|error| {
                Err(RedisError::from((ErrorKind::Io, "the sentinels' question was given up", error.to_string())))
            })
        };
        task.map(ended).boxed().shared()
    }
}

fn node_of(address: &ConnectionAddr) -> Result<Node, RedisError> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Ok((host.clone(), *port)),
        other => Err(RedisError::from((ErrorKind::Io, "the master has no host and port", other.to_string()))),
    }
}

/// The library says "not found" of a name that no sentinel knows, and of a master that is down while no replica has taken over
/// yet: the first is a wrong setting, the second passes.
async fn explain(address: &Address) -> RedisError {
    let ask = |seed| async move { masters(&mut connect(address, seed).await?).await };
    let answers = join_all(address.seeds.iter().map(ask)).await;
    let known: BTreeSet<String> = answers.into_iter().flatten().flat_map(HashMap::into_keys).collect();
    let service = address.service.as_deref().unwrap_or_default();
    if known.contains(service) {
        return RedisError::from((ErrorKind::Io, "it is down, and no replica has taken over yet"));
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let what = format!("{service:?}; they know {known:?}: put one of those behind the hosts in store.url");
    RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "no sentinel knows a master of that name", what))
}

async fn connect(address: &Address, seed: &Node) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
    address.sentinel(seed)?.get_multiplexed_async_connection_with_config(&config).await
}

/// The masters that one sentinel watches, by name.
async fn masters(connection: &mut MultiplexedConnection) -> Result<HashMap<String, Node>, RedisError> {
    let mut ask = redis::cmd("SENTINEL");
    ask.arg("MASTERS");
    let masters: Vec<HashMap<String, String>> = ask.query_async(connection).await?;
    let read = |mut master: HashMap<String, String>| {
        let port = master.get("port")?.parse().ok()?;
        Some((master.remove("name")?, (master.remove("ip")?, port)))
    };
    Ok(masters.into_iter().filter_map(read).collect())
}
