//! Answers of durable vnodes: they wait for the disk, and nothing that an answer has told of is lost with the process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_harness::Settings;
use annulus_harness::disk::Crash;
use annulus_harness::guest::{Keeps, Script};
use annulus_vnode::{Control, CoveragePage};
use bytes::Bytes;
use ciborium::Value;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::bed::{HERE, Node};
use super::machine::Machine;

/// Number of seeds of a check, within which a mutant must be noticed.
pub const SEEDS: u64 = 20;

/// No pauses but those of the disk.
pub fn steady() -> Settings {
    Settings { blocking: Duration::ZERO, held_up: Duration::ZERO, ..Settings::default() }
}

pub fn script() -> Script {
    Script { keeps: Keeps::Host, ..Script::default() }
}

/// Let everything happen that takes no virtual time. A sync takes some.
pub async fn moment() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

pub type Answer = oneshot::Receiver<Result<Bytes, RequestError>>;

pub fn put(node: &Node, key: &str, value: impl Into<Value>) -> Answer {
    node.send("put", &[("key", key.into()), ("value", value.into())], None)
}

pub fn get(node: &Node, key: &str) -> Answer {
    node.send("get", &[("key", key.into())], None)
}

pub fn is_there(answer: &mut Answer) -> bool {
    match answer.try_recv() {
        Ok(_) => true,
        Err(TryRecvError::Empty) => false,
        Err(TryRecvError::Closed) => panic!("no answer will come"),
    }
}

/// Run a node that is killed, or loses its power, again and again under load. Fail if a value that an answer has told of
/// is gone afterwards: that of a put, or that of a get. The values of a key only grow.
fn what_is_told_stays(seed: u64) -> Result<(), String> {
    let mut machine = Machine::new(seed, Settings::default());
    let told = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let next = Arc::new(Mutex::new(0_u64));
    for life in 0..4 {
        let (told, next) = (told.clone(), next.clone());
        let how = if life % 2 == 0 { Crash::PowerLoss } else { Crash::Killed };
        machine.live(how, async move |node| {
            node.deploy(&script(), 1).await.unwrap();
            let expected = told.lock().clone();
            for (key, least) in expected {
                let found = node.get(&key).await.unwrap();
                let found = found.as_integer().and_then(|found| u64::try_from(found).ok()).unwrap_or(0);
                if found < least {
                    return Err(format!("life {life}: {key} is {found} after an answer told of {least}"));
                }
            }
            let tell = {
                let told = told.clone();
                move |key: &str, value: u64| {
                    let mut told = told.lock();
                    let least = told.entry(key.to_owned()).or_default();
                    *least = value.max(*least);
                }
            };
            let clients = (0..4).map(|client| {
                let (node, next, tell) = (node.clone(), next.clone(), tell.clone());
                annulus_ground::spawn(async move {
                    loop {
                        let key = format!("k{}", annulus_ground::random_range(0..3));
                        if client % 2 == 0 {
                            // Number and place in the mailbox are taken together, so that values grow.
                            let (value, answer) = {
                                let mut next = next.lock();
                                *next += 1;
                                (*next, put(&node, &key, *next))
                            };
                            answer.await.unwrap().unwrap();
                            tell(&key, value);
                        } else {
                            let found = node.get(&key).await.unwrap();
                            if let Some(found) = found.as_integer() {
                                tell(&key, u64::try_from(found).unwrap());
                            }
                        }
                        let pause = annulus_ground::random_range(0..3000);
                        tokio::time::sleep(Duration::from_micros(pause)).await;
                    }
                })
            });
            let clients: Vec<_> = clients.collect();
            tokio::time::sleep(Duration::from_micros(annulus_ground::random_range(0..300_000))).await;
            clients.iter().for_each(|client| client.abort());
            Ok(())
        })?;
    }
    let told = told.lock().values().sum::<u64>();
    if told == 0 { Err("nothing was told".to_owned()) } else { Ok(()) }
}

#[test]
fn a_reply_waits_for_what_it_saw() {
    for seed in 0..SEEDS {
        assert_eq!(what_is_told_stays(seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_fault_that_answers_before_the_sync_is_detected() {
    let lies = |seed| mutants::during(Some(Mutant::AckBeforeSync), || what_is_told_stays(seed));
    let first = (0..SEEDS).find_map(|seed| lies(seed).err()).expect("no seed notices");
    assert!(first.contains("after an answer told of"), "{first}");
}

#[test]
fn a_reply_waits_for_nothing_else() {
    Machine::new(1, steady()).live(Crash::Killed, async |node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        node.put("settled", 1).await.unwrap();
        node.put("k", 1).await.unwrap();

        let mut put = put(&node, "k", 2);
        let mut reads = get(&node, "k");
        // The module refuses it after it has read the item.
        let mut refused = node.send("put", &[("key", "k".into())], None);
        let everywhere = CoveragePage { after: None, items: 10, bytes: 1 << 10 };
        let mut page = node.send("keys", &[], Some(everywhere));
        let mut other = get(&node, "settled");
        let mut anywhere = node.send("spin", &[("ms", 0.into())], None);
        let mut unknown = node.send("nonsense", &[], None);
        moment().await;
        for at_once in [&mut other, &mut anywhere, &mut unknown] {
            assert!(is_there(at_once));
        }
        for waits in [&mut put, &mut reads, &mut refused, &mut page] {
            assert!(!is_there(waits));
        }
        // All of them saw the same batch, so the same sync sends them.
        put.await.unwrap().unwrap();
        let read: Value = ciborium::from_reader(&reads.try_recv().unwrap().unwrap()[..]).unwrap();
        assert_eq!(read, Value::from(2));
        assert_eq!(refused.try_recv().unwrap().unwrap_err().code, ErrorCode::BadArguments);
        assert!(is_there(&mut page));
        assert!(is_there(&mut get_at_once(&node, "k").await), "nothing waits for an item that is durable");
    });
}

async fn get_at_once(node: &Node, key: &str) -> Answer {
    let answer = get(node, key);
    moment().await;
    answer
}

#[test]
fn a_vnode_takes_no_command_while_its_answers_fill_the_memory() {
    Machine::new(2, steady()).live(Crash::Killed, async |node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        node.get("k").await.unwrap();
        let large = "x".repeat(1_000_000);
        let put = put(&node, "k", large.clone());
        let gets: Vec<_> = (0..40).map(|_| get(&node, "k")).collect();
        moment().await;
        let ran = node.seen.ran().len();
        assert!((8..12).contains(&ran), "{ran} commands ran before the sync");
        // The vnode still handles messages of the host.
        let (answer, mut pinged) = oneshot::channel();
        assert!(node.master.vnodes(HERE)[0].tell(Control::Ping(answer)));
        moment().await;
        assert_eq!(pinged.try_recv(), Ok(()));
        assert_eq!(node.seen.ran().len(), ran);
        put.await.unwrap().unwrap();
        for get in gets {
            let value: Value = ciborium::from_reader(&get.await.unwrap().unwrap()[..]).unwrap();
            assert_eq!(value.as_text(), Some(&large[..]));
        }
    });
}
