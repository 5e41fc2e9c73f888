//! A Kafka broker for tests: Apache Kafka itself, one node, on free ports in a folder of its own.
//!
//! `scripts/kafka.sh` fetches it. Where that cannot be done librdkafka's mock cluster stands in, and the tests **say so** on
//! stderr; with `TAIJI_REQUIRE_KAFKA=1` that is a failure.

use crate::certificates::make_certificates;
use crate::places::in_repository;
use crate::ports::free_port;
use crate::skip;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest wait for anything a broker should do soon.
pub const BROKER_SOON: Duration = Duration::from_secs(60);

/// Kafka's id of the cluster; any will do.
const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qg";

/// Starts the broker, kills it when told "keep" or when we are gone (then its folder goes, too). No orphan is left, however
/// the tests end.
const KEEPER: &str = r#"
java -Xmx512m -Xms128m -cp "$1/*" kafka.Kafka "$2/server.properties" >"$2/log" 2>&1 &
broker=$!
read -r order
kill -9 $broker
wait $broker 2>/dev/null
[ "$order" = keep ] || rm -rf "$2"
"#;

/// Where the jars are, or why not.
fn jars() -> Result<PathBuf, String> {
    static JARS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let fetch = || {
        let script = in_repository("scripts/kafka.sh");
        let output = Command::new("bash").arg(script).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    };
    JARS.get_or_init(fetch).clone()
}

/// One broker; gone when dropped.
pub struct Broker {
    kind: Kind,
    address: String,
    /// Where it has them.
    secured: Option<Secured>,
}

/// Listeners that do not let everybody in.
pub struct Secured {
    /// SASL PLAIN without TLS: the user `taiji`, who may do all, and `stranger`, who may do nothing, both with the password `right`.
    pub sasl: String,
    /// TLS without a login.
    pub tls: String,
    /// PEM file of the authority that signed its certificate.
    pub authority: PathBuf,
}

enum Kind {
    Real(RealBroker),
    /// Lives as long as this client.
    StandIn(BaseProducer),
}

struct RealBroker {
    folder: PathBuf,
    jars: PathBuf,
    keeper: Option<Child>,
}

impl Broker {
    /// The broker that tests share which need no kill of their own.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Broker::start)
    }

    /// A broker of one's own; a stand-in where Kafka cannot be had.
    pub fn start() -> Broker {
        match jars() {
            Ok(jars) => Broker::start_real(jars, false),
            Err(why) => {
                say(&format!("Apache Kafka is not there; librdkafka's mock cluster stands in. {why}"));
                Broker::start_stand_in()
            }
        }
    }

    /// Apache Kafka, for what the stand-in cannot do. `None` where it cannot be had: the test is skipped.
    #[track_caller]
    pub fn start_if_real() -> Option<Broker> {
        Broker::start_real_or_skip(false)
    }

    /// Apache Kafka with [`Secured`] listeners beside the open one, likewise.
    #[track_caller]
    pub fn start_secured() -> Option<Broker> {
        Broker::start_real_or_skip(true)
    }

    #[track_caller]
    fn start_real_or_skip(is_secured: bool) -> Option<Broker> {
        match jars() {
            Ok(jars) => Some(Broker::start_real(jars, is_secured)),
            Err(why) => {
                let why = format!("it needs Apache Kafka, which is not there. {why}");
                require(&why);
                skip(&why);
                None
            }
        }
    }

    /// Whether it is Apache Kafka; if not, the test is skipped.
    #[track_caller]
    pub fn is_real_or_skip(&self) -> bool {
        if !self.is_real() {
            skip("it needs Apache Kafka; a stand-in is there");
        }
        self.is_real()
    }

    /// Its secured listeners.
    pub fn secured(&self) -> &Secured {
        self.secured.as_ref().expect("a broker of start_secured")
    }

    fn start_real(jars: PathBuf, is_secured: bool) -> Broker {
        let folder = tempfile::Builder::new().prefix("taiji-kafka").tempdir().expect("tempdir").keep();
        let (port, controller) = (free_port(), free_port());
        let mut text = properties(&folder, port, controller);
        let secured = is_secured.then(|| secure(&folder, &mut text));
        std::fs::write(folder.join("server.properties"), text).expect("properties");
        let output = Command::new("java")
            .arg("-cp")
            .arg(format!("{}/*", jars.display()))
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(folder.join("server.properties"))
            .output()
            .expect("java");
        assert!(output.status.success(), "format: {}", String::from_utf8_lossy(&output.stderr));
        let mut broker = RealBroker { folder, jars, keeper: None };
        broker.spawn();
        let broker = Broker { kind: Kind::Real(broker), address: format!("127.0.0.1:{port}"), secured };
        broker.wait_until_ready();
        broker
    }

    fn start_stand_in() -> Broker {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1");
        let client: BaseProducer = config.create().expect("mock cluster");
        let address = client.client().mock_cluster().expect("mock cluster").bootstrap_servers();
        Broker { kind: Kind::StandIn(client), address, secured: None }
    }

    /// Is it Apache Kafka?
    fn is_real(&self) -> bool {
        matches!(self.kind, Kind::Real(_))
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// kill -9; the folder stays for [`Self::start_again`].
    pub fn kill(&mut self) {
        let Kind::Real(real) = &mut self.kind else { panic!("a stand-in cannot be killed") };
        real.stop("keep\n");
    }

    /// The same broker over the same folder and port, waited for.
    pub fn start_again(&mut self) {
        let Kind::Real(real) = &mut self.kind else { panic!("a stand-in cannot be started again") };
        real.spawn();
        self.wait_until_ready();
    }

    /// A client of this broker with nothing else set.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address).set("log_level", "2");
        config
    }

    fn wait_until_ready(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("client");
        let deadline = Instant::now() + BROKER_SOON;
        // A broker that is back answers before it may lead its partitions again.
        let is_ready = || {
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(1)).ok()?;
            let leaders = metadata.topics().iter().flat_map(|topic| topic.partitions()).all(|part| part.leader() >= 0);
            (!metadata.brokers().is_empty() && leaders).then_some(())
        };
        while is_ready().is_none() {
            assert!(Instant::now() < deadline, "the broker did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        let Kind::Real(real) = &self.kind else { return String::new() };
        let log = std::fs::read_to_string(real.folder.join("log")).unwrap_or_default();
        log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    /// Makes a topic and waits until it has leaders. `settings` are the topic's (the stand-in knows none).
    pub fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        if let Kind::StandIn(client) = &self.kind {
            client.client().mock_cluster().expect("mock").create_topic(name, partitions, 1).expect("topic");
            return;
        }
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let made = futures::executor::block_on(admin.create_topics([&topic], &options)).expect("create topic");
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let deadline = Instant::now() + BROKER_SOON;
        loop {
            let metadata = admin.inner().fetch_metadata(Some(name), Duration::from_secs(5)).expect("metadata");
            let led = metadata.topics().iter().all(|topic| {
                topic.partitions().len() == partitions as usize && topic.partitions().iter().all(|p| p.leader() >= 0)
            });
            if led {
                return;
            }
            assert!(Instant::now() < deadline, "{name} has no leader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where each partition of a topic ends.
    pub fn end_offsets(&self, topic: &str, partitions: i32) -> Vec<i64> {
        let consumer: BaseConsumer = self.client().create().expect("consumer");
        let end =
            |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).expect("watermarks").1;
        (0..partitions).map(end).collect()
    }

    /// What a group has committed of a topic, by partition; `None` for nothing.
    pub fn committed(&self, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let committed = consumer.committed_offsets(list, Duration::from_secs(10)).expect("committed");
        (0..partitions)
            .map(|partition| match committed.find_partition(topic, partition).expect("partition").offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
            .collect()
    }

    /// End offsets of a topic, by partition.
    pub fn ends(&self, topic: &str, partitions: i32) -> Vec<i64> {
        let consumer: BaseConsumer = self.client().create().expect("consumer");
        let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).expect("end").1;
        (0..partitions).map(end).collect()
    }

    /// Everything in a topic now, in order within each partition.
    pub fn read_all(&self, topic: &str, partitions: i32) -> Vec<OwnedMessage> {
        let mut config = self.client();
        config.set("group.id", "reader").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().expect("consumer");
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning).expect("partition");
        }
        consumer.assign(&list).expect("assign");
        drop(list);
        let (mut messages, mut open) = (Vec::new(), partitions);
        while open > 0 {
            match consumer.poll(BROKER_SOON).expect("no answer from the broker") {
                Ok(message) => messages.push(message.detach()),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => open -= 1,
                Err(error) => panic!("{topic}: {error}"),
            }
        }
        messages.sort_by_key(|message| (message.partition(), message.offset()));
        messages
    }
}

impl RealBroker {
    fn spawn(&mut self) {
        let child = Command::new("bash")
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.jars)
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.keeper = Some(child.expect("bash"));
    }

    fn stop(&mut self, order: &str) {
        let Some(mut keeper) = self.keeper.take() else { return };
        let mut stdin = keeper.stdin.take().expect("stdin");
        stdin.write_all(order.as_bytes()).expect("keeper");
        drop(stdin);
        keeper.wait().expect("keeper");
    }
}

impl Drop for RealBroker {
    fn drop(&mut self) {
        self.stop("remove\n");
        // A broker that was killed and not started again has no keeper to remove its folder.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Ends the test where nothing but Apache Kafka will do.
fn require(why: &str) {
    assert!(std::env::var("TAIJI_REQUIRE_KAFKA").as_deref() != Ok("1"), "TAIJI_REQUIRE_KAFKA=1: {why}");
}

/// One line on the process's own stderr: what `eprintln!` writes is hidden when a test passes.
fn say(line: &str) {
    require(line);
    let _ = writeln!(std::io::stderr(), "taiji tests: {}", line.trim());
}

/// Adds listeners with a login and with TLS.
fn secure(folder: &Path, properties: &mut String) -> Secured {
    make_certificates(folder);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("certificate");
    std::fs::write(folder.join("both.pem"), read("server.key") + &read("server.pem")).expect("both.pem");
    let (sasl, tls) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let more = format!(",SASL_PLAINTEXT://{sasl},SSL://{tls}");
    let with_more = |line: &str| match line.split_once('=') {
        Some(("listeners" | "advertised.listeners", _)) => format!("{line}{more}\n"),
        Some(("listener.security.protocol.map", _)) => format!("{line},SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL\n"),
        _ => format!("{line}\n"),
    };
    *properties = properties.lines().map(with_more).collect();
    properties.push_str(&format!(
        "listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_taiji=\"right\" user_stranger=\"right\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:taiji
listener.name.ssl.ssl.keystore.type=PEM
listener.name.ssl.ssl.keystore.location={}
",
        folder.join("both.pem").display()
    ));
    Secured { sasl, tls, authority: folder.join("ca.pem") }
}

fn properties(folder: &Path, port: u16, controller: u16) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
message.max.bytes=33554432
log.cleaner.backoff.ms=200
num.network.threads=2
num.io.threads=4
",
        folder.join("data").display()
    )
}
