//! Feeds, referrers and totals.

use super::*;
use crate::event::{Item, ItemState};
use crate::store::{FeedCursor, FeedPage, FreshVector};

pub(super) async fn check(subject: &Subject) {
    vectors(subject).await;
    items(subject).await;
    referrers(subject).await;
    append(subject, "stats user", &[engagement(1, "e", "i")]).await;
    let stats = subject.store.stats().await.unwrap();
    append(subject, "stats user", &[engagement(2, "f", "i")]).await;
    append(subject, "stats user 2", &[engagement(2, "f", "i")]).await;
    assert!(stats.disk_bytes.max(stats.memory_bytes) > 0 && stats.disk_bytes.min(stats.memory_bytes) == 0);
    assert_eq!(subject.store.stats().await.unwrap().users, stats.users + 1);
    subject.store.flush().await.unwrap();
}

/// Everything from a cursor to the last page, and where that ends. Pages are small, so that there are several.
async fn read_vectors(subject: &Subject, space: &str, from: &FeedCursor) -> (Vec<FreshVector>, FeedCursor) {
    let (mut found, mut cursor) = (Vec::new(), from.clone());
    loop {
        let page = subject.store.vectors_after(space, &cursor, 3).await.unwrap();
        found.extend(page.entries);
        cursor = page.cursor;
        if page.is_last {
            found.sort_by(|a, b| a.user.cmp(&b.user));
            return (found, cursor);
        }
    }
}

fn v(seq: u64, turn: u64) -> Version {
    Version { seq, turn }
}

fn fresh(user: &str, era: u64, version: Version, vector: Option<u8>) -> FreshVector {
    FreshVector { user: user.into(), era, version, vector: vector.map(|byte| vec![byte; 8]) }
}

async fn vectors(subject: &Subject) {
    let start = FeedCursor::default();
    let entry = |n: u8| fresh(&format!("u{n:02}"), 1, v(n.into(), 2), (n != 2).then_some(n));
    assert!(read_vectors(subject, "feed", &start).await.0.is_empty());
    for n in 1..=20 {
        subject.store.append_vector("feed", &entry(n)).await.unwrap();
    }
    let (all, end) = read_vectors(subject, "feed", &start).await;
    assert_eq!(all, (1..=20).map(entry).collect::<Vec<_>>());
    let page = subject.store.vectors_after("feed", &start, 1).await.unwrap();
    assert!(!page.is_last && page.entries.len() < 20, "a page is bounded: {}", page.entries.len());
    assert!(read_vectors(subject, "feed", &end).await.0.is_empty());
    assert!(read_vectors(subject, "feed 2", &start).await.0.is_empty(), "spaces are apart");

    // (era, seq, turn) in that order; what is below the stored one is not written, not even as news.
    for lower in [fresh("u05", 1, v(5, 1), Some(99)), fresh("u05", 1, v(4, 9), None), fresh("u05", 0, v(9, 9), None)] {
        subject.store.append_vector("feed", &lower).await.unwrap();
    }
    assert!(read_vectors(subject, "feed", &end).await.0.is_empty());
    let newer =
        [fresh("u03", 1, v(3, 2), Some(30)), fresh("u05", 2, v(0, 0), None), fresh("u10", 1, v(11, 0), Some(31))];
    for vector in &newer {
        subject.store.append_vector("feed", vector).await.unwrap();
    }
    assert_eq!(read_vectors(subject, "feed", &end).await.0, newer, "of equal versions the later");
    assert_eq!(read_vectors(subject, "feed", &start).await.0.len(), 20, "one entry a user");
}

async fn items(subject: &Subject) {
    let item = |id: &str, title: &str| Item {
        id: id.into(),
        title: title.into(),
        categories: vec!["c".into()],
        brand: None,
        price: Some(1.5),
        state: ItemState::Paused,
    };
    let start = FeedCursor::default();
    subject.store.put_items(&[item("a", "1"), item("b", "1"), item("a", "2")]).await.unwrap();
    let first = subject.store.items_after(&start, 10).await.unwrap();
    let titles =
        |page: &FeedPage<Item>| page.entries.iter().map(|item| item.id.clone() + &item.title).collect::<Vec<_>>();
    assert_eq!(
        (titles(&first), first.is_last),
        (vec!["b1".into(), "a2".into()], true),
        "of one call's versions the last"
    );
    assert_eq!(first.entries[1], item("a", "2"));
    subject.store.put_items(&[item("b", "3")]).await.unwrap();
    subject.store.put_items(&[]).await.unwrap();
    let news = subject.store.items_after(&first.cursor, 10).await.unwrap();
    assert_eq!(titles(&news), ["b3"]);
    let all = subject.store.items_after(&start, 10).await.unwrap();
    assert_eq!(titles(&all), ["a2", "b3"], "the whole overlay, latest versions");
    let one = subject.store.items_after(&start, 1).await.unwrap();
    assert_eq!((one.entries.len(), one.is_last), (1, false));
}

async fn referrers(subject: &Subject) {
    let store = &subject.store;
    assert_eq!(store.add_referrer("space", "hub", "a").await.unwrap(), 1);
    assert_eq!(store.add_referrer("space", "hub", "a").await.unwrap(), 1, "once a user");
    assert_eq!(store.add_referrer("space", "hub", "b").await.unwrap(), 2);
    store.remove_referrer("space", "hub", "a").await.unwrap();
    store.remove_referrer("space", "hub", "never").await.unwrap();
    let neighbours = ["nobody", "hub"].map(String::from);
    assert_eq!(store.referrer_counts("space", &neighbours).await.unwrap(), [0, 1]);
    assert_eq!(store.referrer_counts("other", &neighbours).await.unwrap(), [0, 0]);
}
