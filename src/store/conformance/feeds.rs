//! Feeds, referrers and totals.

use super::*;
use crate::event::{Item, ItemState};
use crate::store::FreshVector;

pub(super) async fn check(subject: &Subject) {
    vectors(subject).await;
    items(subject).await;
    referrers(subject).await;
    append(subject, "stats user", &[engagement(1, "e", "i")]).await;
    let stats = subject.store.stats().await.unwrap();
    append(subject, "stats user", &[engagement(2, "f", "i")]).await;
    append(subject, "stats user 2", &[engagement(2, "f", "i")]).await;
    assert!(stats.disk_bytes > 0);
    assert_eq!(subject.store.stats().await.unwrap().users, stats.users + 1);
    subject.store.flush().await.unwrap();
}

async fn vectors(subject: &Subject) {
    let entry = |n: u8| FreshVector {
        user: format!("u{n}"),
        era: 1,
        version: Version { seq: n.into(), turn: 2 },
        vector: (n != 2).then(|| vec![n; 8]),
    };
    assert!(subject.store.vectors_after("feed", 0, 10).await.unwrap().is_empty());
    let mut ids = Vec::new();
    for n in 1..=3 {
        ids.push(subject.store.append_vector("feed", &entry(n)).await.unwrap());
    }
    assert!(ids[0] > 0 && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let all = subject.store.vectors_after("feed", 0, 10).await.unwrap();
    assert_eq!(all, [(ids[0], entry(1)), (ids[1], entry(2)), (ids[2], entry(3))]);
    assert_eq!(subject.store.vectors_after("feed", ids[0], 1).await.unwrap(), all[1..2]);
    assert!(subject.store.vectors_after("feed", ids[2], 10).await.unwrap().is_empty());
    assert!(subject.store.vectors_after("feed", u64::MAX, 10).await.unwrap().is_empty());
    assert!(subject.store.vectors_after("feed 2", 0, 10).await.unwrap().is_empty(), "spaces are apart");
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
    subject.store.put_items(&[item("a", "1"), item("b", "1"), item("a", "2")]).await.unwrap();
    let first = subject.store.items_after(0, 10).await.unwrap();
    let titles = |page: &[(u64, Item)]| page.iter().map(|(_, item)| item.id.clone() + &item.title).collect::<Vec<_>>();
    assert_eq!(titles(&first), ["b1", "a2"], "of one call's versions the last");
    assert_eq!(first[1].1, item("a", "2"));
    subject.store.put_items(&[item("b", "3")]).await.unwrap();
    subject.store.put_items(&[]).await.unwrap();
    let news = subject.store.items_after(first[1].0, 10).await.unwrap();
    assert_eq!(titles(&news), ["b3"]);
    assert_eq!(
        titles(&subject.store.items_after(0, 10).await.unwrap()),
        ["a2", "b3"],
        "the whole overlay, latest versions"
    );
    assert_eq!(subject.store.items_after(0, 1).await.unwrap().len(), 1);
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
