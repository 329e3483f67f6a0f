//! A change of the members as an operator makes it: said again, at another node, until the answer
//! is clear.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{Ran, verb};

/// Longest that a change may take to be accepted: a fault may be in its way.
const LIMIT: Duration = Duration::from_secs(60);
/// Before it is said again.
const AGAIN: Duration = Duration::from_millis(300);

/// What may be said of a node that is elsewhere.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: String,
    /// Its data directory.
    pub data: PathBuf,
}

/// What became of a change.
#[derive(Debug)]
pub struct Changed {
    /// When it was accepted; or how it was refused until the end.
    pub accepted: Result<Instant, String>,
    /// How often it had to be said.
    pub attempts: u32,
}

/// A change under way.
pub type Change = JoinHandle<Changed>;

/// A node joins the cluster of these.
pub fn join(joining: Place, members: Vec<Place>) -> Change {
    insist(members, move |member| ask_in(&joining, member, "--no-wait"))
}

/// A member leaves; its others are told.
pub fn leave(old: String, others: Vec<Place>) -> Change {
    insist(others, move |member| done_before(verb(&member.data, &["leave", &old, "--no-wait"]), &old))
}

/// A new node takes the place of a member: it is let in to wait, then gets all of it.
pub fn replace(old: String, new: Place, others: Vec<Place>) -> Change {
    insist(others, move |member| {
        let joined = ask_in(&new, member, "--stage");
        if joined.code != 0 {
            return joined;
        }
        done_before(verb(&member.data, &["replace", &old, &new.name, "--no-wait"]), &old)
    })
}

/// Accepted by an attempt before, whose answer was lost: this one goes already, or has gone.
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
    // Accepted by an attempt before, whose answer was lost.
    let done = ["is a member of that cluster already", "was admitted"];
    let done = done.iter().any(|said| joined.stderr.contains(said));
    if done { Ran { code: 0, ..joined } } else { joined }
}

fn insist(members: Vec<Place>, attempt: impl Fn(&Place) -> Ran + Send + 'static) -> Change {
    std::thread::spawn(move || {
        let deadline = Instant::now() + LIMIT;
        let mut attempts = 0;
        let mut last = "nobody to say it to".to_owned();
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
