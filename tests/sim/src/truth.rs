//! The truth of every key, and what clients are told of it.
//!
//! What a vnode does is reported where it does it, so the truth changes at the point of effect, not where
//! somebody hears of it. A vnode must be the one that the newest state names, and answer the truth. Where the
//! only copy of a partition may have ended with its holder, its keys may have their values or none, until they
//! are written again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_core::keyspace::{PartitionId, RingSize, hash_key};
use annulus_core::request::{AppliedState, RequestError};

use crate::rule::{Broken, Rule};

/// Numbers of a run's requests.
pub type Op = u64;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The present value.
    Get,
    /// This value from now on.
    Put(u64),
    /// No value from now on.
    Delete,
}

impl Want {
    /// Does it change anything?
    pub fn writes(self) -> bool {
        self != Self::Get
    }
}

/// One key.
#[derive(Clone, Debug)]
struct Key {
    partition: PartitionId,
    value: Option<u64>,
    /// The only copy may be gone: all of these are good.
    loose: Option<BTreeSet<Option<u64>>>,
}

impl Key {
    fn allows(&self, found: Option<u64>) -> bool {
        self.loose.as_ref().map_or(found == self.value, |loose| loose.contains(&found))
    }
}

/// One request of a client.
#[derive(Clone, Debug)]
struct Request {
    key: usize,
    want: Want,
    issued: Duration,
    limit: Duration,
    applied: bool,
    answer: Option<Result<(), AppliedState>>,
}

/// What the last line of a run says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged and gone.
    pub lost: u64,
    /// Deleted and back.
    pub resurrected: u64,
    /// Requests without an answer in time.
    pub unanswered: u64,
    /// Answered `unknown`, or by a node that was killed.
    pub unknown: u64,
    /// Refused, surely not applied.
    pub refused: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self { requests, acknowledged, lost, resurrected, unanswered, unknown, refused } = other;
        self.requests += requests;
        self.acknowledged += acknowledged;
        self.lost += lost;
        self.resurrected += resurrected;
        self.unanswered += unanswered;
        self.unknown += unknown;
        self.refused += refused;
    }
}

/// The truth of a run.
pub struct Truth {
    keys: Vec<Key>,
    requests: BTreeMap<Op, Request>,
    next: Op,
    /// What clients were told.
    pub counts: Counts,
}

/// How much later than its deadline an answer may come: timers tick in milliseconds, and tasks are put off.
const SLACK: Duration = Duration::from_millis(100);

impl Truth {
    /// So many keys of a module, none with a value.
    pub fn new(module: &str, size: RingSize, keys: usize) -> Self {
        let key = |at: usize| {
            let partition = size.partition_of(&hash_key(module.as_bytes(), name(at).as_bytes()));
            Key { partition, value: None, loose: None }
        };
        Self {
            keys: (0..keys).map(key).collect(),
            requests: BTreeMap::new(),
            next: 1,
            counts: Counts::default(),
        }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// A client asks. Each key has one client, which waits for its answer.
    pub fn issue(&mut self, key: usize, want: Want, now: Duration, limit: Duration) -> Op {
        let op = self.next;
        self.next += 1;
        self.counts.requests += 1;
        let request = Request { key, want, issued: now, limit, applied: false, answer: None };
        self.requests.insert(op, request);
        op
    }

    /// A vnode of this partition has carried a request out, and answers `found` if it is a read.
    ///
    /// # Errors
    /// The rule that this breaks.
    pub fn effect(&mut self, op: Op, partition: PartitionId, found: Option<u64>) -> Result<(), Broken> {
        let Some(request) = self.requests.get_mut(&op) else {
            return Err(Rule::Twice.broken(format!("#{op}, which nobody asked for, is carried out")));
        };
        let (key, want) = (request.key, request.want);
        if self.keys[key].partition != partition {
            return Err(Rule::OneTruth.broken(format!("#{op} of k{key} is carried out in p{}", partition.0)));
        }
        if !want.writes() {
            return self.read(key, found, &format!("#{op}"));
        }
        if std::mem::replace(&mut request.applied, true) {
            return Err(Rule::Twice.broken(format!("#{op} is carried out again")));
        }
        if request.answer == Some(Err(AppliedState::NotApplied)) {
            return Err(Rule::AnswerTells.broken(format!("#{op} was said to be not applied, and is now")));
        }
        self.keys[key].loose = None;
        self.keys[key].value = match want {
            Want::Put(value) => Some(value),
            Want::Get | Want::Delete => None,
        };
        Ok(())
    }

    fn read(&mut self, at: usize, found: Option<u64>, who: &str) -> Result<(), Broken> {
        let key = &self.keys[at];
        if key.allows(found) {
            return Ok(());
        }
        let what = format!("{who} finds {found:?} for k{at}, which is {:?}", key.value);
        Err(match key.value {
            None => {
                self.counts.resurrected += 1;
                Rule::Resurrected.broken(what)
            }
            Some(_) => {
                self.counts.lost += 1;
                Rule::LostWrite.broken(what)
            }
        })
    }

    /// A client has its answer; `asleep`: the node that it asked was paused meanwhile, so it may be late.
    ///
    /// # Errors
    /// The rule that this breaks.
    pub fn answered(
        &mut self,
        op: Op,
        answer: Result<(), &RequestError>,
        now: Duration,
        asleep: bool,
    ) -> Result<(), Broken> {
        let Some(request) = self.requests.get_mut(&op) else { return Ok(()) };
        let late = now.saturating_sub(request.issued + request.limit);
        let (key, want) = (request.key, request.want);
        request.answer = Some(answer.map_err(|error| error.state));
        if late > SLACK && !asleep {
            self.counts.unanswered += 1;
            let limit = request.limit;
            return Err(
                Rule::EveryRequestEnds.broken(format!("#{op} had {limit:?} and is answered {late:?} later"))
            );
        }
        match answer {
            Ok(()) if want.writes() => {
                self.counts.acknowledged += 1;
                if !request.applied {
                    self.counts.lost += 1;
                    let what =
                        format!("#{op}, {want:?} of k{key}, was acknowledged before it was carried out");
                    return Err(Rule::LostWrite.broken(what));
                }
            }
            Ok(()) => {}
            Err(error) if error.state == AppliedState::NotApplied => {
                self.counts.refused += 1;
                if request.applied && want.writes() {
                    let what = format!("#{op} is said to be not applied ({:?}), and was", error.code);
                    return Err(Rule::AnswerTells.broken(what));
                }
            }
            Err(_) => self.counts.unknown += 1,
        }
        Ok(())
    }

    /// The node that a client asked was killed: nobody knows what became of the request.
    pub fn orphaned(&mut self, op: Op) {
        if let Some(request) = self.requests.get_mut(&op) {
            request.answer = Some(Err(AppliedState::Unknown));
            self.counts.unknown += 1;
        }
    }

    /// The only copy of a partition's items may be gone.
    pub fn loosen(&mut self, partition: PartitionId) {
        for key in self.keys.iter_mut().filter(|key| key.partition == partition) {
            let value = key.value;
            key.loose.get_or_insert_with(|| [value].into()).insert(None);
        }
    }

    /// Requests that have no answer yet.
    pub fn open(&self) -> usize {
        self.requests.values().filter(|request| request.answer.is_none()).count()
    }
}

/// What a key is called.
pub fn name(at: usize) -> String {
    format!("key{at}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn truth() -> Truth {
        Truth::new("kv", RingSize::try_from(8).unwrap(), 1)
    }

    fn put(truth: &mut Truth, value: u64) -> Op {
        let (op, at) = (truth.issue(0, Want::Put(value), NOW, NOW), truth.keys[0].partition);
        truth.effect(op, at, None).unwrap();
        truth.answered(op, Ok(()), NOW, false).unwrap();
        op
    }

    fn get(truth: &mut Truth, found: Option<u64>) -> Result<(), Rule> {
        let (op, at) = (truth.issue(0, Want::Get, NOW, NOW), truth.keys[0].partition);
        truth.effect(op, at, found).map_err(|broken| broken.rule)
    }

    #[test]
    fn a_read_finds_what_was_written_last() {
        let mut truth = truth();
        assert_eq!(get(&mut truth, Some(1)), Err(Rule::Resurrected));
        put(&mut truth, 1);
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, None)), (Ok(()), Err(Rule::LostWrite)));
        assert_eq!((truth.counts.acknowledged, truth.counts.lost, truth.counts.resurrected), (1, 1, 1));
    }

    #[test]
    fn after_a_loss_a_key_has_its_value_or_none_until_it_is_written() {
        let mut truth = truth();
        put(&mut truth, 1);
        truth.loosen(truth.keys[0].partition);
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, None)), (Ok(()), Ok(())));
        assert_eq!(get(&mut truth, Some(7)), Err(Rule::LostWrite));
        put(&mut truth, 2);
        assert_eq!(get(&mut truth, None), Err(Rule::LostWrite));
    }

    #[test]
    fn a_write_happens_once_and_answers_tell_of_it() {
        let mut truth = truth();
        let (op, at) = (put(&mut truth, 1), truth.keys[0].partition);
        assert_eq!(truth.effect(op, at, None).unwrap_err().rule, Rule::Twice);
        let refused = RequestError::not_applied(annulus_core::request::ErrorCode::NotReady, "not yet");
        let op = truth.issue(0, Want::Put(2), NOW, NOW);
        truth.answered(op, Err(&refused), NOW, false).unwrap();
        assert_eq!(truth.effect(op, at, None).unwrap_err().rule, Rule::AnswerTells);
        let op = truth.issue(0, Want::Put(3), NOW, NOW);
        assert_eq!(truth.answered(op, Ok(()), NOW, false).unwrap_err().rule, Rule::LostWrite);
        let op = truth.issue(0, Want::Delete, NOW, NOW);
        let late = truth.answered(op, Err(&refused), NOW * 3, false).unwrap_err();
        assert_eq!((late.rule, truth.open()), (Rule::EveryRequestEnds, 0));
    }
}
