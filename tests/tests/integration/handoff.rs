//! Partitions move between real nodes during writes, and no item is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_tests::guests::component;
use annulus_tests::inside::{InsideNode, owned};
use ciborium::Value;

fn three() -> (tempfile::TempDir, Vec<InsideNode>) {
    let dir = tempfile::tempdir().unwrap();
    let nodes =
        ["a", "b", "c"].map(|name| InsideNode::start(&format!("{name}@127.0.0.1"), &dir.path().join(name)));
    (dir, nodes.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_and_leave_under_writes_and_every_acknowledged_write_reads_back() {
    let level = tracing_subscriber::filter::LevelFilter::INFO;
    let _ = tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init();
    let (_dir, mut nodes) = three();
    nodes[0].deploy(component("guests/ping")).await;
    nodes[0].deploy(component("guests/kv")).await;
    let mut model: BTreeMap<String, i64> = BTreeMap::new();
    for n in 0..2000 {
        let key = format!("k{n}");
        nodes[0].call("kv", "put", &[("key", key.as_str().into()), ("value", n.into())]).await.unwrap();
        model.insert(key, n);
    }
    let done = Arc::new(AtomicBool::new(false));
    let (first, rest) = nodes.split_at_mut(1);
    let first = &first[0];
    let writer = async {
        let mut n = 0i64;
        while !done.load(Ordering::Relaxed) {
            n += 1;
            let key = format!("k{}", n % 3000);
            match n % 3 {
                0 => {
                    first.call("kv", "delete", &[("key", key.as_str().into())]).await.unwrap();
                    model.remove(&key);
                }
                _ => {
                    first
                        .call("kv", "put", &[("key", key.as_str().into()), ("value", (n + 10_000).into())])
                        .await
                        .unwrap();
                    model.insert(key, n + 10_000);
                }
            }
        }
        n
    };
    let changes = async {
        rest[0].join(first).await;
        rest[1].join(first).await;
        first
            .until("three members own a third each", |view| {
                owned(view) == [22, 21, 21] || owned(view) == [21, 22, 21] || owned(view) == [21, 21, 22]
            })
            .await;
        first
            .until("nothing is pending", |view| view.state.ring.iter().all(|(_, p)| p.pending.is_none()))
            .await;
        rest[0]
            .life()
            .cluster
            .leave(None, tokio::time::Instant::now() + Duration::from_secs(20))
            .await
            .unwrap();
        first.until("the one that left owns nothing", |view| owned(view).len() == 2).await;
        first
            .until("nothing is pending", |view| view.state.ring.iter().all(|(_, p)| p.pending.is_none()))
            .await;
        done.store(true, Ordering::Relaxed);
    };
    let (written, ()) = tokio::join!(writer, changes);
    println!("{written} writes");
    assert!(written > 100);
    for (key, value) in &model {
        let got = rest[1].call("kv", "get", &[("key", key.as_str().into())]).await.unwrap();
        assert_eq!(got, Value::from(*value), "{key}");
    }
    let (keys, missing) = rest[1].everywhere("kv", "keys").await;
    assert!(missing.is_empty());
    let mut keys: Vec<String> = keys.into_iter().map(|key| key.into_text().unwrap()).collect();
    keys.sort();
    assert_eq!(keys, model.keys().cloned().collect::<Vec<_>>());
}

/// A frame of the handoff stream holds at most 1 MiB, but an item may be larger: both one that is read for the
/// handoff and one that is written while its partition moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_larger_than_a_frame_move() {
    let (_dir, nodes) = three();
    let mut nodes = nodes.into_iter();
    let (a, mut b) = (nodes.next().unwrap(), nodes.next().unwrap());
    a.deploy(component("guests/memkv")).await;
    let value = |n: usize, size: usize| Value::from(char::from(b'a' + n as u8).to_string().repeat(size));
    let sizes = [1_200_000, 2_500_000, 4_000_000];
    let put = async |n: usize, size: usize| {
        let key = format!("large{n}");
        a.call("memkv", "put", &[("key", key.into()), ("value", value(n, size))]).await.unwrap();
    };
    for n in 0..12 {
        put(n, sizes[n % 3]).await;
    }
    let written = async {
        // At this point half of the partitions have a pending transfer.
        a.until("something moves", |view| view.state.ring.transfers().next().is_some()).await;
        for n in 0..12 {
            put(n, sizes[(n + 1) % 3]).await;
        }
    };
    tokio::join!(b.join(&a), written);
    a.until("two members own a half each", |view| owned(view) == [32, 32]).await;
    a.until("nothing is pending", |view| view.state.ring.transfers().next().is_none()).await;
    for n in 0..12 {
        let key = format!("large{n}");
        let got = b.call("memkv", "get", &[("key", key.into())]).await.unwrap();
        assert!(got == value(n, sizes[(n + 1) % 3]), "large{n}");
    }
}
