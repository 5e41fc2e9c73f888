//! What one record that cannot be read does to others: nothing.

use super::*;
use crate::store::StoreError;

async fn open(server: &RedisServer) -> Arc<RedisStore> {
    RedisStore::open(Address::parse(&server.url()).unwrap(), options(2)).await.unwrap()
}

#[tokio::test]
async fn audit_02_one_command_of_a_batch_fails_alone_and_names_its_key() {
    let server = RedisServer::start();
    let store = open(&server).await;
    server.command(&["SET", "taiji:{a}:st", "theirs"]);
    server.command(&["SET", "taiji:users", "many"]);
    let calls = vec![
        Call::new("SET", "taiji:{b}:x").arg("1"),
        Call::new("HGETALL", "taiji:{a}:st"),
        Call::new("INCRBY", "taiji:users").arg(1),
        Call::function(function!("item_users"), &["taiji:{a}:st".to_string()]).arg("").arg(1),
        Call::new("GET", "taiji:{b}:x"),
    ];
    let answers = store.link.run_each("test", calls).await;
    let corrupt = |answer: &StoreResult<Value>, wanted: &str| match answer {
        Err(StoreError::Corrupt { key, .. }) => assert_eq!(key, wanted),
        other => panic!("{wanted}: {other:?}"),
    };
    assert!(answers[0].is_ok());
    corrupt(&answers[1], "taiji:{a}:st");
    corrupt(&answers[2], "taiji:users");
    corrupt(&answers[3], "taiji:{a}:st");
    assert_eq!(answers[4].as_ref().unwrap(), &Value::BulkString(b"1".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_02_a_node_that_is_away_is_missing_from_a_batch_and_the_others_answer() {
    let mut cluster = RedisCluster::start();
    let patience = Patience { connect: Duration::from_secs(1), response: Duration::from_secs(1), retries: 1 };
    let address = Address::parse(&cluster.url()).unwrap();
    let store = RedisStore::open(address, RedisOptions { patience, ..options(2) }).await.unwrap();
    let keys: Vec<String> = (0..30).map(|n| format!("taiji:{{k{n}}}:x")).collect();
    for node in &cluster.nodes {
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    cluster.nodes[1].kill();
    // Once after the tries, once at once: the circuit is open by then.
    for round in 0..2 {
        let answers = store.link.run_each("test", keys.iter().map(|key| Call::new("GET", key)).collect()).await;
        for (key, answer) in keys.iter().zip(answers) {
            let lost = (5461..=10922).contains(&keys::slot_of(key));
            assert_eq!(answer.is_err(), lost, "round {round}, {key}: {answer:?}");
            assert!(!lost || answer.is_err_and(|error| error.is_transient()), "{key}");
        }
    }
}
