//! The worst of what is put aside, and of what only an opening, an erasure or a clean-up sends.

use super::*;

/// Functions that have their case here.
pub const FUNCTIONS: [&str; 4] = ["present", "set_aside", "clear_aside", "expire_aside"];
/// As many are kept aside.
const KEPT: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_01_what_is_put_aside_costs_the_server_no_more_than_it_may() {
    let (server, mut log) = Log::of_new_server().await;
    let open = || async { RedisStore::open(Address::parse(&server.url()).unwrap(), options(8)).await.unwrap() };
    let store = open().await;
    let runs = if is_audit() { 20 } else { 5 };
    let erased = store.keys.erasures()[0].clone();
    let [aside, _] = store.keys.unreadable(keys::tag_of(&erased));
    for n in 0..KEPT {
        store.note_space(&long_id(n, "s")).await.unwrap();
    }
    for nth in 0..runs {
        let mut plant = ::redis::pipe();
        for n in 0..KEPT {
            let (member, value) = (format!("{nth} {}", long_id(n, "b")), "x".repeat(4096));
            plant.cmd("HSET").arg(&erased).arg(member).arg(value).ignore();
        }
        plant.exec_async(&mut log.connection).await.unwrap();
        run_in!(log, "1,000 unreadable", assert_eq!(store.erasures().await.unwrap(), []));
        assert_eq!(server.command(&["ZCARD", &aside]), format!(":{KEPT}\r\n"), "each pushes one out");
        let newest = format!("{nth} {}", long_id(KEPT - 1, "b"));
        run_in!(log, "an erased user's", store.clear_aside(&erased, &newest).await.unwrap());
        assert_eq!(server.command(&["ZCARD", &aside]), format!(":{}\r\n", KEPT - 1));
        run_in!(log, "spaces", assert_eq!(store.spaces().await.unwrap().len(), KEPT));
        if nth % 2 == 1 {
            run_in!(log, "all expire", store.expire_aside(i64::MAX).await);
            assert_eq!(server.command(&["EXISTS", &aside]), ":0\r\n");
        }
        server.command(&["FUNCTION", "FLUSH"]);
        drop(run_in!(log, "open and load", open().await));
    }
    let seen = log.judged();
    assert!(FUNCTIONS.iter().all(|name| seen.contains(*name)), "{seen:?}");
    assert!(["FUNCTION", "SMEMBERS", "HSCAN"].iter().all(|name| seen.contains(*name)), "{seen:?}");
}
