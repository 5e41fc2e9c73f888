//! A Redis that died within a transaction and was started twice since: the half of it comes back (Redis 7.0 leaves it in the
//! append-only file), after what was lost has been sent again.

use super::*;
use crate::store::conformance::engagement;

/// Where commands end in a piece of an append-only file.
fn command_ends(log: &[u8]) -> Vec<usize> {
    let mut rest = log;
    let mut number = |sign: u8| -> usize {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let (line, after) = rest.split_at(end);
        assert_eq!(line[0], sign);
        let value = std::str::from_utf8(&line[1..]).unwrap().parse().unwrap();
        rest = &after[2..];
        if sign == b'$' {
            rest = &rest[value + 2..];
        }
        match sign {
            b'$' => rest.len(),
            _ => value,
        }
    };
    let mut ends = Vec::new();
    let mut left = log.len();
    while left > 0 {
        for _ in 0..number(b'*') {
            left = number(b'$');
        }
        ends.push(log.len() - left);
    }
    ends
}

/// Kept: 10, 20, 30. Then `late` is written, the file is cut after `commands` of what that wrote (or a little into the next),
/// `others` and `late` are sent, Redis is started once more. Returns false when there are not so many before the last.
async fn comes_back(late: i64, others: &[i64], commands: usize) -> bool {
    let mut server = RedisServer::start();
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(2)).await.unwrap();
    let send = async |times: &[i64]| {
        let records = times.iter().map(|ts_ms| engagement(*ts_ms, &format!("e{ts_ms}"), "item")).collect();
        let batch = UserBatch { user: "u".into(), records };
        store.append(&["s".into()], &[batch]).await.unwrap().remove(0)
    };
    let history = async || store.histories(&["u".to_string()]).await.unwrap().remove(0).unwrap();
    send(&[10, 20, 30]).await;
    let before = server.log_length();
    send(&[late]).await;
    let log = std::fs::read(server.folder.path().join("appendonlydir/appendonly.aof.1.incr.aof")).unwrap();
    let ends = command_ends(&log[before as usize..]);
    if commands + 1 >= ends.len() {
        return false;
    }
    server.lose_tail(before + ends[commands] as u64 + 3);
    let kept = history().await.engagements.len();
    assert_eq!(send(others).await.accepted as usize, others.len());
    assert_eq!(send(&[late]).await.accepted as usize, 4 - kept, "late {late}, {commands} commands");
    server.stop();
    server.restart();
    let mut wanted: Vec<i64> = [10, 20, 30, late].into_iter().chain(others.iter().copied()).collect();
    for more in [15, 25, 35] {
        let found = history().await;
        wanted.sort_unstable_by(|one, other| other.cmp(one));
        let times: Vec<i64> = found.engagements.iter().map(|behaviour| behaviour.ts_ms).collect();
        assert_eq!(
            (times, found.state.seq as usize),
            (wanted.clone(), wanted.len()),
            "late {late}, {commands} commands"
        );
        assert_eq!(send(&wanted).await.accepted, 0, "all are known");
        assert_eq!(send(&[more]).await.accepted, 1);
        wanted.push(more);
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_entry_is_lost_or_doubled_by_the_half_of_a_transaction() {
    let mut cuts = 0;
    // Newest, between, oldest; sent again after something older, something newer, nothing.
    for (late, others) in [(40, vec![33]), (40, vec![44]), (22, vec![21]), (22, vec![24]), (22, vec![]), (5, vec![7])] {
        let mut commands = 0;
        while comes_back(late, &others, commands).await {
            commands += 1;
        }
        cuts += commands;
    }
    assert_eq!(
        cuts,
        3 * 3 + 3 * 4,
        "after MULTI, after each of the one or two for the list, after that for the counters"
    );
}
