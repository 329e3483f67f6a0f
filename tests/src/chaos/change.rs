//! A change of the membership made by a persistent operator: the verb is repeated, at one member after
//! another, until the answer is clear.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{Ran, verb};

/// Longest time for a change to be accepted; a fault may delay it.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause before the next attempt.
const AGAIN: Duration = Duration::from_millis(300);

/// The address data of one node, without its process, for use on another thread.
#[derive(Clone, Debug)]
pub struct Place {
    /// `name@host`.
    pub name: String,
    /// Address of its QUIC endpoint.
    pub listen: String,
    /// Its data directory.
    pub data: PathBuf,
}

/// The result of a change.
#[derive(Debug)]
pub struct Changed {
    /// Time at which the change was accepted, or the last error.
    pub accepted: Result<Instant, String>,
    /// Number of attempts.
    pub attempts: u32,
}

/// A change in progress.
pub type Change = JoinHandle<Changed>;

/// Join a node to the cluster of `members`.
pub fn join(joining: Place, members: Vec<Place>) -> Change {
    insist(members, move |member| ask_in(&joining, member, "--no-wait"))
}

/// Let a member leave; the verb goes to the other members.
pub fn leave(old: String, others: Vec<Place>) -> Change {
    insist(others, move |member| done_before(verb(&member.data, &["leave", &old, "--no-wait"]), &old))
}

/// Replace a member by a new node: the new node joins as staged, then receives all partitions of the old.
pub fn replace(old: String, new: Place, others: Vec<Place>) -> Change {
    insist(others, move |member| {
        let joined = ask_in(&new, member, "--stage");
        if joined.code != 0 {
            return joined;
        }
        done_before(verb(&member.data, &["replace", &old, &new.name, "--no-wait"]), &old)
    })
}

/// Treat the errors of a member that is leaving, removed or unknown as success: an earlier attempt was accepted
/// and its answer lost.
fn done_before(ran: Ran, old: &str) -> Ran {
    let said = [format!("{old} is leaving"), format!("{old} is removed"), format!("no member {old}")];
    let done = said.iter().any(|said| ran.stderr.contains(said));
    if done { Ran { code: 0, ..ran } } else { ran }
}

fn ask_in(joining: &Place, member: &Place, how: &str) -> Ran {
    let token = verb(&member.data, &["token"]);
    if token.code != 0 {
        return token;
    }
    let joined = verb(
        &joining.data,
        &["join", &member.listen, "--token", token.stdout.trim(), "--timeout", "30s", how],
    );
    // These errors mean that an earlier attempt was accepted and its answer lost.
    let done = ["is a member of that cluster already", "was admitted"];
    let done = done.iter().any(|said| joined.stderr.contains(said));
    if done { Ran { code: 0, ..joined } } else { joined }
}

fn insist(members: Vec<Place>, attempt: impl Fn(&Place) -> Ran + Send + 'static) -> Change {
    std::thread::spawn(move || {
        let deadline = Instant::now() + LIMIT;
        let mut attempts = 0;
        let mut last = "no member to send the change to".to_owned();
        for member in members.iter().cycle() {
            attempts += 1;
            let ran = attempt(member);
            if ran.code == 0 {
                return Changed { accepted: Ok(Instant::now()), attempts };
            }
            last = format!("{} at {}", ran.stderr.trim(), member.name);
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(AGAIN);
        }
        Changed { accepted: Err(last), attempts }
    })
}
