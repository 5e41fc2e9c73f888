//! A server that answers at once, but for one second in which it answers nobody. In: when that begins. Out: an address.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The gate that all connections pass; shut from one time to another.
struct Gate {
    closed: Mutex<Option<(Instant, Instant)>>,
    changed: Condvar,
}

impl Gate {
    /// Returns when the gate is open.
    fn pass(&self) {
        let mut closed = self.closed.lock().expect("gate");
        loop {
            let now = Instant::now();
            match *closed {
                Some((from, to)) if from <= now && now < to => {
                    closed = self.changed.wait_timeout(closed, to - now).expect("gate").0;
                }
                _ => return,
            }
        }
    }
}

/// Starts it; the stall begins `after` the first request. It lives as long as the tests do.
pub fn start(after: Duration, stall: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let gate = Arc::new(Gate { closed: Mutex::new(None), changed: Condvar::new() });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let gate = gate.clone();
            {
                let mut closed = gate.closed.lock().expect("gate");
                closed.get_or_insert_with(|| (Instant::now() + after, Instant::now() + after + stall));
            }
            std::thread::spawn(move || answer(stream, &gate));
        }
    });
    address
}

/// A request is a head without a body.
fn answer(stream: TcpStream, gate: &Gate) {
    stream.set_nodelay(true).expect("nodelay");
    let (reader, mut writer) = (BufReader::new(stream.try_clone().expect("clone")), stream);
    for line in reader.lines().map_while(Result::ok) {
        if line.is_empty() {
            gate.pass();
            if writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    }
}
