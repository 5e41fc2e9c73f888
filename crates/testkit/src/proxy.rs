//! A TCP proxy that can be cut: the network between the service and a server.
//!
//! In: the server's address. Out: an address that leads to it. A cut closes every connection and refuses new ones; a pause
//! keeps them open and lets nothing through, as a network that drops packets does; a slow link passes everything on later.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Whole,
    Paused,
    Cut,
    Ended,
}

struct Shared {
    link: Mutex<Link>,
    changed: Condvar,
    /// What every piece waits for, each way.
    delay: Mutex<Duration>,
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn link(&self) -> Link {
        *self.link.lock().expect("link")
    }

    fn set(&self, link: Link) {
        *self.link.lock().expect("link") = link;
        self.changed.notify_all();
        if matches!(link, Link::Cut | Link::Ended) {
            for stream in self.open.lock().expect("connections").drain(..) {
                // Already closed by its own end.
                drop(stream.shutdown(Shutdown::Both));
            }
        }
    }

    fn delay(&self) -> Duration {
        *self.delay.lock().expect("delay")
    }

    /// Waits while the link is paused; false when what was read must not be passed on.
    fn may_pass(&self) -> bool {
        let mut link = self.link.lock().expect("link");
        while *link == Link::Paused {
            link = self.changed.wait(link).expect("link");
        }
        *link == Link::Whole
    }
}

/// The proxy; dropping it closes everything.
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A whole link to a server.
    pub fn to(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let link = Mutex::new(Link::Whole);
        let shared = Shared { link, changed: Condvar::new(), delay: Mutex::default(), open: Mutex::default() };
        let shared = Arc::new(shared);
        let (state, server) = (shared.clone(), server.to_string());
        std::thread::spawn(move || accept(&listener, &server, &state));
        Proxy { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Closes every connection and refuses new ones.
    pub fn cut(&self) {
        self.shared.set(Link::Cut);
    }

    /// Keeps connections open and lets nothing through.
    pub fn pause(&self) {
        self.shared.set(Link::Paused);
    }

    /// Lets everything through so much later, each way. What comes meanwhile waits for the piece before it.
    pub fn slow(&self, delay: Duration) {
        *self.shared.delay.lock().expect("delay") = delay;
    }

    /// Lets everything through again, and at once.
    pub fn restore(&self) {
        self.slow(Duration::ZERO);
        self.shared.set(Link::Whole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.set(Link::Ended);
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(&self.address));
    }
}

fn accept(listener: &TcpListener, server: &str, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        match shared.link() {
            Link::Ended => return,
            Link::Cut => continue,
            Link::Whole | Link::Paused => {}
        }
        // A server that is away refuses its client, too.
        let Ok(upstream) = TcpStream::connect(server) else { continue };
        connect(client, upstream, shared);
    }
}

fn connect(client: TcpStream, upstream: TcpStream, shared: &Arc<Shared>) {
    let copies = || {
        Some([
            client.try_clone().ok()?,
            upstream.try_clone().ok()?,
            client.try_clone().ok()?,
            upstream.try_clone().ok()?,
        ])
    };
    let Some([client_in, server_out, client_kept, server_kept]) = copies() else { return };
    let mut open = shared.open.lock().expect("connections");
    open.push(client_kept);
    open.push(server_kept);
    drop(open);
    // A cut between the look at the link and the note of the connection would have missed it.
    if matches!(shared.link(), Link::Cut | Link::Ended) {
        shared.set(shared.link());
    }
    for (from, to) in [(client_in, server_out), (upstream, client)] {
        let state = shared.clone();
        std::thread::spawn(move || pass(from, to, &state));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        // The delay is what a slow network is.
        std::thread::sleep(shared.delay());
        if read == 0 || !shared.may_pass() || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_can_be_cut_paused_slowed_and_restored() {
        let server = TcpListener::bind("127.0.0.1:0").expect("bind");
        let proxy = Proxy::to(&server.local_addr().expect("address").to_string());
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                std::thread::spawn(move || {
                    let (mut from, mut to) = (stream.try_clone().expect("clone"), stream);
                    drop(std::io::copy(&mut from, &mut to));
                });
            }
        });
        let echo = |stream: &mut TcpStream| -> std::io::Result<()> {
            stream.write_all(b"ping")?;
            stream.read_exact(&mut [0; 4])
        };
        let mut stream = TcpStream::connect(proxy.address()).expect("connect");
        echo(&mut stream).expect("a whole link");

        proxy.pause();
        stream.write_all(b"held").expect("write");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
        assert!(stream.read_exact(&mut [0; 4]).is_err(), "a paused link lets nothing through");
        stream.set_read_timeout(None).expect("time-out");
        proxy.restore();
        let mut held = [0; 4];
        stream.read_exact(&mut held).expect("what was held comes");
        assert_eq!(&held, b"held");

        let (delay, began) = (Duration::from_millis(30), std::time::Instant::now());
        proxy.slow(delay);
        echo(&mut stream).expect("a slow link");
        assert!(began.elapsed() >= 2 * delay, "there and back");
        proxy.restore();

        proxy.cut();
        assert!(echo(&mut stream).is_err(), "the connection is closed");
        let refused = TcpStream::connect(proxy.address()).and_then(|mut stream| echo(&mut stream));
        assert!(refused.is_err(), "new ones are closed at once");
        proxy.restore();
        echo(&mut TcpStream::connect(proxy.address()).expect("connect")).expect("restored");
    }
}
