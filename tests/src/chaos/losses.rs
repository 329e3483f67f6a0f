//! The partitions that a killed node held, and a check that the node reports their loss itself.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::beside::modules;
use crate::harness::{Node, until};

/// Longest time for `status` to name the possible losses of a node that was killed.
const MENTION: Duration = Duration::from_secs(10);
/// Time without a change of the dead node's ownership before its partitions are counted.
const STILL: Duration = Duration::from_secs(1);

/// Return the partitions that the dead node owns, as soon as they can no longer change: there is a new
/// claimant, no sender has sealed a partition for the dead node, and nothing has changed for [`STILL`].
pub(super) fn held_by_dead(dead: &str, others: &[&Node]) -> BTreeSet<u16> {
    let mut before = (BTreeSet::new(), Instant::now());
    until("the dead node's partitions no longer change", || {
        let asked = others.first()?;
        let status = asked.json(&["status"]).lines().first()?.clone();
        let led = status["quorum"] == true && status["claimant"].as_str().is_some_and(|now| now != dead);
        let coming = others.iter().any(|node| gives_to(node, dead));
        let held = owned(asked, dead)?;
        if !led || coming || held != before.0 {
            before = (held, Instant::now());
        }
        (before.1.elapsed() >= STILL).then(|| before.0.clone())
    })
}

/// Return true if this node may be about to give the named node a partition, or if it does not answer.
fn gives_to(node: &Node, name: &str) -> bool {
    let rows = node.json(&["transfers"]);
    let rows = rows.lines().into_iter().next().unwrap_or_default();
    let sealed = |row: &serde_json::Value| row["to"] == name && row["state"] == "sealed";
    rows.as_array().is_none_or(|rows| rows.iter().any(sealed))
}

/// Check that the `status` of a node that was killed names the possible losses of each module. Return the
/// number of partitions.
///
/// # Errors
/// The partitions that `status` does not name.
pub(super) fn check_mentioned(asked: &Node, held: &BTreeSet<u16>) -> Result<usize, String> {
    let deadline = Instant::now() + MENTION;
    loop {
        let status = asked.json(&["status"]);
        let status = status.lines().into_iter().next().unwrap_or_default();
        let silent = |module: &&str| !held.is_subset(&possible_losses(&status, module));
        let Some(module) = modules().find(silent) else { return Ok(held.len()) };
        if Instant::now() >= deadline {
            let silent: Vec<u16> = held.difference(&possible_losses(&status, module)).copied().collect();
            return Err(format!("`status` does not name {silent:?} of {module}, which a killed node held"));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Return the partitions that the named node owns.
fn owned(asked: &Node, name: &str) -> Option<BTreeSet<u16>> {
    let ring = asked.json(&["ring"]).lines().into_iter().next()?;
    let rows = ring["partitions"].as_array()?;
    Some((0..).zip(rows).filter(|(_, row)| row["replicas"][0] == name).map(|(id, _)| id).collect())
}

/// Return the partitions for which `status` reports possible losses of this module.
pub(crate) fn possible_losses(status: &serde_json::Value, module: &str) -> BTreeSet<u16> {
    let alerts = status["alerts"].as_array().cloned().unwrap_or_default();
    alerts.iter().filter_map(|alert| alert.as_str()).flat_map(|line| named(line, module)).collect()
}

/// Parse the partitions out of an alert: `partitions 1-3, 7 are gone` from a node that restarted, or
/// `partition 4` from a node that took a partition over without its items. Empty if the alert is about another
/// module.
fn named(line: &str, module: &str) -> Vec<u16> {
    let Some((_, what)) = line.split_once("possible-loss: ") else { return Vec::new() };
    // An alert without a module's name is about every module.
    if modules().any(|other| other != module && what.split([' ', ':']).next() == Some(other)) {
        return Vec::new();
    }
    let Some((_, after)) = what.split_once("partition") else { return Vec::new() };
    let words = after.trim_start_matches('s').split([' ', ',', ':']).filter(|word| !word.is_empty());
    let ranges = words.map_while(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn partitions_are_parsed_from_both_kinds_of_alert() {
        let started =
            "possible-loss: memkv: the node started again: items in memory of partitions 0-2, 7 are gone";
        assert_eq!(named(started, "memkv"), [0, 1, 2, 7]);
        assert_eq!(named("possible-loss:  partition 4: the partition was taken over", "memkv"), [4]);
        assert_eq!(named("possible-loss: nothing", "memkv"), [] as [u16; 0]);
    }

    #[test]
    fn a_loss_of_another_module_is_not_counted() {
        let trapped = "possible-loss: trap partitions 3-4: the guest trapped";
        assert_eq!((named(trapped, "memkv"), named(trapped, "trap")), (vec![], vec![3, 4]));
    }
}
