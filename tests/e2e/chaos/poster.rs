//! A client that repeats what was not answered: events, items and erasures over HTTP.
//!
//! In: the calls of a stream; the fleet's public ports. Out: when each thing was sent first and acknowledged, if ever. Callers:
//! `run`, on threads of its own.

use super::check::{Erased, Event, Sent, Wanted, Way};
use super::fleet::Fleet;
use super::site::Site;
use super::stream::Post;
use crate::worlds::{click, now_ms};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::process::{Answer, head, percent, read_answer};

/// A client waits no longer for an answer.
const IMPATIENCE: Duration = Duration::from_secs(8);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// After this a client gives up.
const GIVES_UP: Duration = Duration::from_secs(90);
/// Clients that post events.
const CLIENTS: usize = 4;
/// Users who are erased.
const ERASED: usize = 10;
/// Events of each life of such a user.
const LIFE: usize = 5;
/// Items of one call.
const ITEMS: usize = 10;

/// One client.
pub struct Client<'a> {
    site: &'a Site,
    fleet: &'a Fleet,
    random: ChaCha8Rng,
}

impl<'a> Client<'a> {
    pub fn new(site: &'a Site, fleet: &'a Fleet, seed: u64) -> Client<'a> {
        Client { site, fleet, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Sends until somebody answers that it is done. An answer that it never can be is a violation.
    fn insist(&mut self, method: &str, path: &str, body: &Value) -> (Sent, Value) {
        let (first, begun) = (self.site.elapsed(), Instant::now());
        let members = self.fleet.api();
        while begun.elapsed() < GIVES_UP {
            let member = members[self.random.random_range(0..members.len())];
            match request(&member.listen, method, path, body) {
                Ok(answer) if answer.status / 100 == 2 => {
                    return (Sent { first, acked: Some(self.site.elapsed()) }, answer.json());
                }
                Ok(answer) if answer.status / 100 == 4 && answer.status != 429 => {
                    self.site.violation(format!("{method} {path} answered {}: {}", answer.status, answer.text()));
                    break;
                }
                Ok(_) | Err(_) => std::thread::sleep(PAUSE),
            }
        }
        (Sent { first, acked: None }, Value::Null)
    }

    fn post_events(&mut self, events: &[Value]) -> Sent {
        let (sent, answer) = self.insist("POST", "/v1/events", &json!({ "events": events }));
        if sent.acked.is_some() && answer["rejected"] != json!([]) {
            self.site.violation(format!("good events were rejected: {}", answer["rejected"]));
            return Sent { acked: None, ..sent };
        }
        sent
    }
}

fn request(address: &str, method: &str, path: &str, body: &Value) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(IMPATIENCE))?;
    stream.set_write_timeout(Some(IMPATIENCE))?;
    let body = if method == "POST" { body.to_string() } else { String::new() };
    stream.write_all(&head(address, method, path, &[], body.len()))?;
    stream.write_all(body.as_bytes())?;
    read_answer(&mut stream)
}

/// Posts the stream's calls, each when its time has come; several clients take turns. Returns event id → when it was sent.
pub fn post_all(site: &Site, fleet: &Fleet, posts: &[Post], time: Duration, seed: u64) -> BTreeMap<String, Sent> {
    let (next, sent, begun) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Instant::now());
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (next, sent) = (&next, &sent);
            scope.spawn(move || {
                let mut client = Client::new(site, fleet, seed * 100 + client as u64);
                while let Some(post) = posts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    std::thread::sleep(time.mul_f64(post.at).saturating_sub(begun.elapsed()));
                    let done = client.post_events(&post.events);
                    let mut sent = sent.lock().expect("sent");
                    for event in &post.events {
                        note(&mut sent, event["event_id"].as_str().expect("id"), done);
                    }
                }
            });
        }
    });
    sent.into_inner().expect("sent")
}

/// Of two calls with one event the earlier counts where it was acknowledged.
fn note(sent: &mut BTreeMap<String, Sent>, id: &str, done: Sent) {
    let known = sent.entry(id.to_string()).or_insert(done);
    known.first = known.first.min(done.first);
    known.acked = [known.acked, done.acked].into_iter().flatten().min();
}

/// Posts new items all the time.
pub fn post_items(site: &Site, fleet: &Fleet, seed: u64, is_over: impl Fn() -> bool) -> BTreeMap<String, Sent> {
    let (mut client, mut items) = (Client::new(site, fleet, seed ^ 0x17E5), BTreeMap::new());
    while !is_over() {
        let names: Vec<String> = (0..ITEMS).map(|place| format!("s{seed}-item-{}", items.len() + place)).collect();
        let item = |name: &String| json!({ "id": name, "title": format!("Thing {name}"), "categories": ["Things"] });
        let body = json!({ "items": names.iter().map(item).collect::<Vec<_>>() });
        let (sent, _) = client.insist("POST", "/v1/items", &body);
        items.extend(names.into_iter().map(|name| (name, sent)));
        std::thread::sleep(Duration::from_millis(500));
    }
    items
}

/// Users who do something, are erased in the middle, whose old events come again, and who begin anew.
pub fn erase_some(site: &Site, fleet: &Fleet, seed: u64, time: Duration) -> BTreeMap<String, Wanted> {
    let (mut client, begun) = (Client::new(site, fleet, seed ^ 0xE2A5), Instant::now());
    let users: Vec<String> = (0..ERASED).map(|user| format!("s{seed}-gone{user}")).collect();
    let mut wanted = BTreeMap::new();
    let old = |user: &str, ts_ms: i64| {
        let item = |n: usize| (format!("{user}-item{n}"), format!("{user}-old{n}"));
        let mut events: Vec<Value> = (0..LIFE + 1).map(|n| click(user, &item(n).1, ts_ms + n as i64)).collect();
        for (n, event) in events.iter_mut().enumerate() {
            event["item_id"] = json!(item(n).0);
        }
        events
    };
    let past_ms = now_ms() - 7_200_000;
    for user in &users {
        // The last of them comes only after the erasure.
        client.post_events(&old(user, past_ms)[..LIFE]);
    }
    std::thread::sleep((time / 2).saturating_sub(begun.elapsed()));
    for user in &users {
        let (sent, _) = client.insist("DELETE", &format!("/v1/users/{}", percent(user)), &Value::Null);
        let events = old(user, past_ms);
        let texts = |name: &str| events.iter().filter_map(|event| event[name].as_str().map(String::from)).collect();
        let erased = Erased { sent, events: texts("event_id"), items: texts("item_id") };
        wanted.insert(user.clone(), Wanted { events: Vec::new(), erased: Some(erased) });
    }
    for user in &users {
        client.post_events(&old(user, past_ms));
        // Beyond the moment of the erasure, whosever clock it was.
        let new_ms = now_ms() + 60_000;
        let events: Vec<Value> = (0..LIFE).map(|n| click(user, &format!("{user}-new{n}"), new_ms + n as i64)).collect();
        let sent = client.post_events(&events);
        let event = |n: usize| Event {
            ts_ms: new_ms + n as i64,
            id: format!("{user}-new{n}"),
            is_impression: false,
            way: Way::Http,
            sent,
        };
        if let Some(wanted) = wanted.get_mut(user) {
            wanted.events = (0..LIFE).rev().map(event).collect();
        }
    }
    wanted
}
