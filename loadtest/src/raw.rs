//! Bare pipelined reads of Redis: the commands that a read of taiji sends, by a client that does nothing else. The limit of a read.
//!
//! In: a server's address, the commands of each call. Out: calls a second, and how long a round trip took. Each connection writes the
//! commands of `depth` calls at once, waits until all are answered, and begins again.

use hdrhistogram::Histogram;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Why there was no reading.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// Refused, reset or closed.
    #[error("redis: {0}; is a server there, and does it let us in?")]
    Connection(#[from] io::Error),
    /// It answered with an error, or not in its protocol.
    #[error("redis: {0}")]
    Answer(String),
    /// A setting that reads nothing.
    #[error("{0}")]
    Setting(&'static str),
    /// A thread panicked.
    #[error("raw: a thread broke down; this is a fault of the program")]
    Thread,
}

/// How it is read.
#[derive(Debug, Clone)]
pub struct RawLoad {
    /// `host:port`.
    pub address: String,
    /// `AUTH`'s arguments, where one must log in.
    pub login: Option<(String, String)>,
    /// Each on a thread of its own.
    pub connections: usize,
    /// Calls whose commands go out at once.
    pub depth: usize,
    /// How long.
    pub time: Duration,
}

/// What came of it.
pub struct RawFound {
    /// Calls a second.
    pub rate: f64,
    /// Of round trips, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Calls that were answered.
    pub calls: u64,
}

/// What a read of taiji asks of a user's hash (`store/redis/features.rs`).
pub(crate) const FIELDS: [&str; 3] = ["rev", "r", "intra"];

/// That hash.
pub(crate) fn key_of(user: &str, space: &str) -> String {
    format!("taiji:{{{user}}}:f:{space}")
}

/// A command as it goes over the wire.
pub fn command(parts: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend_from_slice(format!("${}\r\n{part}\r\n", part.len()).as_bytes());
    }
    bytes
}

/// One call: its commands one behind the other, and how many answers they get.
#[derive(Debug, Clone)]
pub struct RawCall {
    /// As they go over the wire.
    pub bytes: Vec<u8>,
    /// Of how many commands.
    pub answers: usize,
}

impl RawCall {
    /// A read of these users' features: a command each.
    pub fn read(users: &[String], space: &str) -> RawCall {
        let one = |user: &String| command(&[&["HMGET", &key_of(user, space)][..], &FIELDS].concat());
        RawCall::of(&users.iter().map(one).collect::<Vec<_>>())
    }

    /// Of these commands.
    pub fn of(commands: &[Vec<u8>]) -> RawCall {
        RawCall { bytes: commands.concat(), answers: commands.len() }
    }
}

/// Reads for that time, call after call from the front.
pub fn run(load: &RawLoad, calls: &[RawCall]) -> Result<RawFound, RawError> {
    if load.connections == 0 || load.depth == 0 || calls.is_empty() {
        return Err(RawError::Setting("raw: at least one connection, one call at a time, one call to make"));
    }
    let began = Instant::now();
    let threads: Result<Vec<(u64, Histogram<u64>)>, RawError> = std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..load.connections).map(|number| scope.spawn(move || read(load, calls, number, began))).collect();
        running.into_iter().map(|one| one.join().unwrap_or(Err(RawError::Thread))).collect()
    });
    let (mut answered, mut latency) = (0, histogram()?);
    for (count, part) in threads? {
        answered += count;
        latency.add(&part).map_err(|error| RawError::Answer(error.to_string()))?;
    }
    Ok(RawFound { rate: answered as f64 / began.elapsed().as_secs_f64(), latency, calls: answered })
}

fn histogram() -> Result<Histogram<u64>, RawError> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).map_err(|error| RawError::Answer(error.to_string()))
}

fn read(load: &RawLoad, calls: &[RawCall], number: usize, began: Instant) -> Result<(u64, Histogram<u64>), RawError> {
    let mut link = Link::open(load)?;
    let (mut answered, mut latency, mut next) = (0, histogram()?, number * calls.len() / load.connections);
    let mut bytes = Vec::new();
    while began.elapsed() < load.time {
        bytes.clear();
        let mut answers = 0;
        for _ in 0..load.depth {
            let call = &calls[next % calls.len()];
            next += 1;
            bytes.extend_from_slice(&call.bytes);
            answers += call.answers;
        }
        let sent = Instant::now();
        link.ask(&bytes, answers)?;
        latency.saturating_record((sent.elapsed().as_nanos() as u64).max(1_000));
        answered += load.depth as u64;
    }
    Ok((answered, latency))
}

/// A connection and what came over it.
struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Link {
    fn open(load: &RawLoad) -> Result<Link, RawError> {
        let stream = TcpStream::connect(&load.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut link = Link { stream, buffer: Vec::new() };
        if let Some((user, password)) = &load.login {
            link.ask(&command(&["AUTH", user, password]), 1)?;
        }
        Ok(link)
    }

    /// Writes all and reads so many answers; none may be an error.
    fn ask(&mut self, bytes: &[u8], answers: usize) -> Result<(), RawError> {
        self.stream.write_all(bytes)?;
        self.buffer.clear();
        let (mut at, mut left, mut chunk) = (0, answers, vec![0; 256 << 10]);
        while left > 0 {
            match value_end(&self.buffer, at)? {
                Some(end) => {
                    at = end;
                    left -= 1;
                }
                None => {
                    let read = self.stream.read(&mut chunk)?;
                    if read == 0 {
                        return Err(
                            io::Error::new(io::ErrorKind::UnexpectedEof, "closed before all was answered").into()
                        );
                    }
                    self.buffer.extend_from_slice(&chunk[..read]);
                }
            }
        }
        Ok(())
    }
}

/// Where the value that begins at `at` ends, or `None` where it has not come whole.
fn value_end(buffer: &[u8], at: usize) -> Result<Option<usize>, RawError> {
    // Values that an array still has to bring, the first one included.
    let (mut at, mut left) = (at, 1usize);
    while left > 0 {
        let Some(length) = buffer[at.min(buffer.len())..].windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&buffer[at..at + length]);
        let after = at + length + 2;
        let number = || line[1..].parse::<i64>().map_err(|_| RawError::Answer(format!("a length in {line:?}")));
        left -= 1;
        at = match line.as_bytes().first() {
            Some(b'+' | b':' | b'_') => after,
            Some(b'$') => after + usize::try_from(number()?).map_or(0, |bytes| bytes + 2),
            Some(b'*') => {
                left += usize::try_from(number()?).unwrap_or(0);
                after
            }
            _ => return Err(RawError::Answer(line.trim_start_matches('-').to_string())),
        };
        if at > buffer.len() {
            return Ok(None);
        }
    }
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(b"+OK\r\n".to_vec()),
            any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
            Just(b"$-1\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| [
                format!("${}\r\n", bytes.len()).as_bytes(),
                &bytes,
                b"\r\n"
            ]
            .concat()),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            proptest::collection::vec(inner, 0..5)
                .prop_map(|values| [format!("*{}\r\n", values.len()).as_bytes(), &values.concat()].concat())
        })
    }

    proptest! {
        #[test]
        fn a_value_ends_where_it_ends_and_no_sooner(first in value(), second in value()) {
            let both = [first.clone(), second].concat();
            prop_assert_eq!(value_end(&both, 0).expect("a value"), Some(first.len()));
            prop_assert_eq!(value_end(&both, first.len()).expect("a value"), Some(both.len()));
            for cut in 0..first.len() {
                prop_assert_eq!(value_end(&first[..cut], 0).expect("a part"), None);
            }
        }
    }

    #[test]
    fn an_error_is_one() {
        for bytes in [&b"-NOAUTH log in\r\n"[..], b"*1\r\n-NOAUTH log in\r\n", b"$x\r\n", b"?\r\n"] {
            assert!(value_end(bytes, 0).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn commands_of_a_real_server_are_answered() {
        let server = testkit::redis::RedisServer::with(&["--appendonly", "no"]);
        server.command(&["HSET", "h", "intra", "bytes", "r", "1"]);
        let call = RawCall::of(&vec![command(&["HMGET", "h", "rev", "r", "intra"]); 100]);
        let load = RawLoad {
            address: format!("127.0.0.1:{}", server.port),
            login: Some(("service".into(), "pw".into())),
            connections: 2,
            depth: 3,
            time: Duration::from_millis(200),
        };
        let before = server.command(&["INFO", "commandstats"]);
        assert!(!before.contains("hmget"), "{before}");
        let found = run(&load, &[call]).expect("read");
        assert!(found.calls > 0 && found.calls.is_multiple_of(3) && found.latency.len() == found.calls / 3);
        let after = server.command(&["INFO", "commandstats"]);
        let counted = format!("cmdstat_hmget:calls={},", 100 * found.calls);
        assert!(after.contains(&counted), "{counted} in {after}");
        let wrong = RawLoad { login: Some(("service".into(), "no".into())), ..load };
        let said = run(&wrong, &[RawCall::of(&[command(&["PING"])])]).map(|_| ()).expect_err("refused").to_string();
        assert!(said.contains("WRONGPASS"), "{said}");
    }
}
