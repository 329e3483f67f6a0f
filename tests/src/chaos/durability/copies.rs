//! A comparison of the copies that the members of each key have, byte by byte.
//!
//! With `r` = 1 a member that is cut off from all others answers a read from its own copy. So each member is asked for the
//! bytes of its keys while no two of them reach each other.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use super::{MODULES, N, REST, SETTLE, sets};
use crate::harness::Node;
use crate::ledger::Crowd;
use crate::relay::Relay;

/// Deadline of one read. It is short: until a node has noticed that it is alone, it may ask another one.
const LIMIT: Duration = Duration::from_secs(2);
/// Number of different keys that are named.
const NAMED: usize = 5;

/// The bytes that each node has, by module and key.
type Copies = BTreeMap<(&'static str, u32), BTreeMap<String, Option<Vec<u8>>>>;

/// Cut all members off from each other, and check that the members of each key have the same bytes. The modules must read
/// with `r` = 1, and no writes be made. The cuts are healed in the end.
///
/// # Errors
/// The keys whose copies differ, or the reason why a node did not answer.
pub(super) fn equal(crowd: &Crowd, members: &[&Node], relay: &Relay) -> Result<String, String> {
    let sets = members.first().map(|node| sets(node)).unwrap_or_default();
    if sets.is_empty() {
        return Err("no node shows the ring".to_owned());
    }
    relay.isolate_all();
    let copies = gather(crowd, members, &sets);
    relay.heal();
    let copies = copies?;
    let differ: Vec<String> = copies.iter().filter_map(|(key, copies)| difference(key, copies)).collect();
    if differ.is_empty() {
        return Ok(format!("{} keys", copies.len()));
    }
    Err(format!(
        "{} of {} keys differ: {}",
        differ.len(),
        copies.len(),
        differ[..NAMED.min(differ.len())].join("; ")
    ))
}

/// Return the bytes of every key on each of its members.
fn gather(crowd: &Crowd, members: &[&Node], sets: &[Vec<String>]) -> Result<Copies, String> {
    let mut copies = Copies::new();
    for node in members {
        for (module, _) in MODULES {
            let keys = crowd.keys(module).into_iter();
            let kept = keys.filter(|(_, partition)| {
                sets.get(usize::from(partition.0)).is_some_and(|set| set.contains(&node.name))
            });
            for (key, bytes) in from_node(crowd, node, module, kept.map(|(key, _)| key).collect())? {
                copies.entry((module, key)).or_default().insert(node.name.clone(), bytes);
            }
        }
    }
    Ok(copies)
}

fn from_node(
    crowd: &Crowd,
    node: &Node,
    module: &str,
    mut keys: BTreeSet<u32>,
) -> Result<BTreeMap<u32, Option<Vec<u8>>>, String> {
    let deadline = Instant::now() + SETTLE;
    let mut all = BTreeMap::new();
    while !keys.is_empty() {
        let asked: Vec<u32> = keys.iter().copied().collect();
        let (stored, why) = crowd.stored(node, module, &asked, LIMIT)?;
        keys.retain(|key| !stored.contains_key(key));
        all.extend(stored);
        if !keys.is_empty() && Instant::now() >= deadline {
            let why = why.unwrap_or_default();
            return Err(format!(
                "{} alone does not answer for {} keys of {module}: {why}",
                node.name,
                keys.len()
            ));
        }
        if !keys.is_empty() {
            thread::sleep(REST);
        }
    }
    Ok(all)
}

/// Return how the copies of a key differ; `None` if all [`N`] members have the same bytes.
fn difference((module, key): &(&str, u32), copies: &BTreeMap<String, Option<Vec<u8>>>) -> Option<String> {
    let different: BTreeSet<&Option<Vec<u8>>> = copies.values().collect();
    let bytes =
        |copy: &Option<Vec<u8>>| copy.as_ref().map_or("nothing".to_owned(), |bytes| bytes.len().to_string());
    let each: Vec<String> = copies.iter().map(|(node, copy)| format!("{node} {}", bytes(copy))).collect();
    (different.len() > 1 || copies.len() != N)
        .then(|| format!("{module} key{key} (bytes: {})", each.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_other_bytes_or_none_are_different() {
        let copies = |all: &[Option<&[u8]>]| {
            (0..).zip(all).map(|(node, copy): (u8, _)| (node.to_string(), copy.map(<[u8]>::to_vec))).collect()
        };
        let differ = |all: &[Option<&[u8]>]| difference(&("m", 1), &copies(all)).is_some();
        assert!(!differ(&[Some(b"a"), Some(b"a"), Some(b"a")]) && !differ(&[None, None, None]));
        assert!(differ(&[Some(b"a"), Some(b"a"), Some(b"b")]) && differ(&[Some(b"a"), None, None]));
        assert!(differ(&[Some(b"a"), Some(b"a")]), "one member is missing");
    }
}
