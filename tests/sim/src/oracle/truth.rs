//! The oracle of keys: the true value of every key, and the answers that clients get.
//!
//! Commands are reported by the guest or vnode that runs them, so the truth changes when a command takes effect and
//! not when its answer arrives. Every read must return the true value. If the only copy of a partition may be lost,
//! its keys may have their value or none, until a read shows which, or they are written again.
//!
//! A crash loses nothing of a durable module that anybody was told of (R11): a key may only go back to a value that it
//! had since the last answer that told of it. `Trail` has these values.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_core::keyspace::{PartitionId, RingSize, hash_key};
use annulus_core::request::{AppliedState, ErrorCode, RequestError};

use super::trail::Trail;
use crate::rule::{Broken, Rule};

/// The number of a request in its run, from 1.
pub type Op = u64;

/// The operation of a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Read the value.
    Get,
    /// Set the value. A client never puts the same number twice.
    Put(u64),
    /// Delete the key.
    Delete,
}

impl Want {
    /// Return true if the operation changes the key.
    pub fn writes(self) -> bool {
        self != Self::Get
    }
}

/// The truth of one key.
#[derive(Clone, Debug)]
struct Key {
    module: usize,
    partition: PartitionId,
    value: Option<u64>,
    /// The values that a read may find, if the only copy may be lost; `None` if only `value` is right.
    loose: Option<BTreeSet<Option<u64>>>,
    /// The times of changes, and whether the key may have existed and may have been absent from then on.
    past: Vec<(Duration, bool, bool)>,
    /// Every value that the key ever had.
    ever: BTreeSet<Option<u64>>,
    /// The values that a crash may leave.
    trail: Trail,
}

impl Key {
    fn allows(&self, found: Option<u64>) -> bool {
        self.loose.as_ref().map_or(found == self.value, |loose| loose.contains(&found))
    }

    fn set(&mut self, value: Option<u64>, now: Duration) {
        (self.value, self.loose) = (value, None);
        self.ever.insert(value);
        self.note(now);
    }

    /// Let a read find any of these values, besides those that it may find already.
    fn loosen(&mut self, values: impl IntoIterator<Item = Option<u64>>, now: Duration) {
        let value = self.value;
        self.loose.get_or_insert_with(|| [value].into()).extend(values);
        self.trail.is_in_doubt(self.loose.iter().flatten().copied());
        self.note(now);
    }

    fn note(&mut self, now: Duration) {
        let (there, away) = match &self.loose {
            None => (self.value.is_some(), self.value.is_none()),
            Some(loose) => (loose.iter().any(Option::is_some), loose.contains(&None)),
        };
        self.past.push((now, there, away));
    }
}

/// One request of a client. Its `answer` is the state that an error gave, if it was one.
#[derive(Clone, Debug)]
struct Request {
    key: usize,
    want: Want,
    issued: Duration,
    limit: Duration,
    applied: bool,
    /// The era of the module that has run it.
    era: u64,
    /// The place in the key's trail of the value that the request wrote or found.
    mark: Option<u64>,
    answer: Option<Result<(), AppliedState>>,
}

/// Counts of requests by outcome, as the last line of a run shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Acknowledged writes that a read did not find, or that were acknowledged before they were applied.
    pub lost: u64,
    /// Reads that found a value of a deleted key.
    pub resurrected: u64,
    /// Requests without an answer in time.
    pub unanswered: u64,
    /// Requests that were answered `unknown`, or whose node was killed before it answered.
    pub unknown: u64,
    /// Requests that were refused and certainly not applied.
    pub refused: u64,
}

impl Counts {
    /// Add the counts of another run.
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

/// A command that a vnode has run.
#[derive(Clone, Copy, Debug)]
pub struct Effect {
    /// The request that the command belongs to.
    pub op: Op,
    /// The partition of the vnode.
    pub partition: PartitionId,
    /// The value that a read found.
    pub found: Option<u64>,
    /// The id of the vnode's module. A module that is deployed again under the same name has a higher one.
    pub era: u64,
    /// The virtual time of the effect.
    pub now: Duration,
}

/// The truth of a run: its keys and requests.
pub struct Truth {
    keys: Vec<Key>,
    modules: Vec<String>,
    /// Whether the items of each module are durable.
    durable: Vec<bool>,
    /// The newest era of each module.
    eras: Vec<u64>,
    /// Writes that a guest has made and its store has not taken, by their answers.
    untaken: Vec<Op>,
    /// True from a recovery until [`Self::settle`]: several histories may be served at once, so a read may find any
    /// value that the key ever had.
    shaken: bool,
    requests: BTreeMap<Op, Request>,
    next: Op,
    /// The requests so far, by outcome.
    pub counts: Counts,
}

/// Longest delay of an answer past its deadline: timers have a resolution of a millisecond, and tasks are delayed.
const SLACK: Duration = Duration::from_millis(100);

impl Truth {
    /// Create the truth of `keys` keys without values, which belong to the modules in turn.
    pub fn new(modules: &[String], size: RingSize, keys: usize) -> Self {
        let key = |at: usize| {
            let module = at % modules.len();
            let partition = size.partition_of(&hash_key(modules[module].as_bytes(), name(at).as_bytes()));
            let past = vec![(Duration::ZERO, false, true)];
            let (ever, trail) = ([None].into(), Trail::begins([None]));
            Key { module, partition, value: None, loose: None, past, ever, trail }
        };
        Self {
            keys: (0..keys).map(key).collect(),
            modules: modules.to_vec(),
            durable: vec![false; modules.len()],
            eras: vec![0; modules.len()],
            untaken: Vec::new(),
            shaken: false,
            requests: BTreeMap::new(),
            next: 1,
            counts: Counts::default(),
        }
    }

    /// Return the name of a key's module.
    pub fn module(&self, key: usize) -> &str {
        &self.modules[self.keys[key].module]
    }

    /// Return the keys of a module.
    pub fn of_module(&self, module: usize) -> impl Iterator<Item = usize> {
        self.keys.iter().enumerate().filter(move |(_, key)| key.module == module).map(|(at, _)| at)
    }

    /// Return the partition of a key.
    pub fn partition(&self, key: usize) -> PartitionId {
        self.keys[key].partition
    }

    /// Return whether a key may have existed at any time since `since`, and whether it may have been absent.
    pub fn over(&self, key: usize, since: Duration) -> (bool, bool) {
        let past = &self.keys[key].past;
        let from = past.partition_point(|(at, ..)| *at < since).saturating_sub(1);
        let over = past[from..].iter();
        let seen = over.fold((false, false), |seen, (_, there, away)| (seen.0 | there, seen.1 | away));
        if self.shaken { (true, true) } else { seen }
    }

    /// Record a new request. Each key has one client, which waits for each answer.
    pub fn issue(&mut self, key: usize, want: Want, now: Duration, limit: Duration) -> Op {
        let op = self.next;
        self.next += 1;
        self.counts.requests += 1;
        let request =
            Request { key, want, issued: now, limit, applied: false, era: 0, mark: None, answer: None };
        self.requests.insert(op, request);
        op
    }

    /// Record a command that a vnode has run.
    ///
    /// # Errors
    /// Returns the rule that the command breaks: a wrong partition, a write that is applied twice or after it was
    /// refused, or a wrong value.
    pub fn effect(&mut self, effect: Effect) -> Result<(), Broken> {
        let Effect { op, partition, found, era, now } = effect;
        let Some(request) = self.requests.get_mut(&op) else {
            return Err(Rule::Twice.broken(format!("#{op} is applied, but no client has sent it")));
        };
        let (key, want) = (request.key, request.want);
        if self.keys[key].partition != partition {
            return Err(Rule::OneTruth.broken(format!("#{op} of k{key} is applied in p{}", partition.0)));
        }
        if want.writes() && std::mem::replace(&mut request.applied, true) {
            return Err(Rule::Twice.broken(format!("#{op} is applied twice")));
        }
        if want.writes() && request.answer == Some(Err(AppliedState::NotApplied)) {
            return Err(
                Rule::AnswerTells.broken(format!("#{op} was answered `not-applied`, and is applied now"))
            );
        }
        let module = self.keys[key].module;
        if let Some(request) = self.requests.get_mut(&op) {
            request.era = era;
        }
        self.begins(module, era, now);
        if era < self.eras[module] {
            // The node has not applied the undeploy yet: the effect belongs to the old module and ends with it.
            return Ok(());
        }
        let written = match want {
            Want::Get => {
                self.read(key, found, now, &format!("#{op}"))?;
                self.mark(op, key);
                return Ok(());
            }
            Want::Put(value) => Some(value),
            Want::Delete => None,
        };
        self.keys[key].set(written, now);
        self.keys[key].trail.goes_on(written);
        self.mark(op, key);
        Ok(())
    }

    /// Remember what the request has written or found.
    fn mark(&mut self, op: Op, key: usize) {
        if let Some(request) = self.requests.get_mut(&op) {
            request.mark = Some(self.keys[key].trail.mark());
        }
    }

    fn read(&mut self, at: usize, found: Option<u64>, now: Duration, who: &str) -> Result<(), Broken> {
        let key = &mut self.keys[at];
        if self.shaken && key.ever.contains(&found) {
            return Ok(());
        }
        if key.allows(found) {
            if key.loose.is_some() {
                // The read shows which value has survived; from now on the key has this one.
                key.set(found, now);
                // What a process finds may be in the page cache only. The answer is what fixes it.
                key.trail.goes_on(found);
            }
            return Ok(());
        }
        let what =
            format!("{who} finds {found:?} for k{at} in p{}, which is {:?}", key.partition.0, key.value);
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

    /// Record the answer that a client has got. `asleep` is true if the node asked was paused in the meantime: the
    /// answer may be late then.
    ///
    /// # Errors
    /// Returns the rule that the answer breaks.
    pub fn answered(
        &mut self,
        op: Op,
        answer: Result<(), &RequestError>,
        now: Duration,
        asleep: bool,
    ) -> Result<(), Broken> {
        let Some(request) = self.requests.get_mut(&op) else { return Ok(()) };
        let (key, want) = (request.key, request.want);
        request.answer = Some(answer.map_err(|error| error.state));
        if !asleep && let Err(broken) = late(&format!("#{op}"), now, request.issued, request.limit) {
            self.counts.unanswered += 1;
            return Err(broken);
        }
        if let (Ok(()), Some(mark)) = (answer, request.mark) {
            self.keys[key].trail.is_told(mark);
        }
        if let Err(error) = &answer
            && error.code == ErrorCode::Internal
        {
            return Err(Rule::AnswerTells
                .broken(format!("#{op} is answered by an internal error of the host: {error}")));
        }
        match answer {
            Ok(()) if want.writes() => {
                self.counts.acknowledged += 1;
                if !request.applied {
                    self.counts.lost += 1;
                    let what = format!("#{op}, {want:?} of k{key}, was acknowledged before it was applied");
                    return Err(Rule::LostWrite.broken(what));
                }
            }
            Ok(()) => {}
            Err(error) if error.state == AppliedState::NotApplied => {
                self.counts.refused += 1;
                if request.applied
                    && want.writes()
                    && error.code == ErrorCode::NotReady
                    && self.durable[self.keys[key].module]
                {
                    // The store has taken no write of a module that ended in the meantime.
                    self.untaken.push(op);
                } else if request.applied && want.writes() {
                    let what = format!("#{op} is answered `not-applied` ({:?}), but was applied", error.code);
                    return Err(Rule::AnswerTells.broken(what));
                }
            }
            Err(_) => self.counts.unknown += 1,
        }
        Ok(())
    }

    /// Check that the modules have ended whose stores have not taken a write: otherwise its effect was visible.
    ///
    /// # Errors
    /// Returns [`Rule::AnswerTells`] if one has not.
    pub fn check_untaken(&self) -> Result<(), Broken> {
        for op in &self.untaken {
            let Some(request) = self.requests.get(op) else { continue };
            if request.era >= self.eras[self.keys[request.key].module] {
                let what = format!("#{op} is answered `not-applied` by a store, but was applied");
                return Err(Rule::AnswerTells.broken(what));
            }
        }
        Ok(())
    }

    /// Record that the node asked was killed before it answered: the outcome of the request is unknown.
    pub fn orphaned(&mut self, op: Op) {
        if let Some(request) = self.requests.get_mut(&op) {
            request.answer = Some(Err(AppliedState::Unknown));
            self.counts.unknown += 1;
        }
    }

    /// Record that a module is deployed. If it is a newer one of its name, it starts without items.
    pub fn begins(&mut self, module: usize, era: u64, now: Duration) {
        if era > self.eras[module] {
            self.eras[module] = era;
            for key in self.keys.iter_mut().filter(|key| key.module == module) {
                key.set(None, now);
                key.trail.is_over();
            }
        }
    }

    /// Record whether the items of a module are durable.
    pub fn keeps(&mut self, module: usize, durable: bool) {
        self.durable[module] = durable;
    }

    /// Return true if the items of a key are durable.
    pub fn is_durable(&self, key: usize) -> bool {
        self.durable[self.keys[key].module]
    }

    /// Return the newest era of a module: the id of the module that now has its name.
    pub fn era(&self, module: usize) -> u64 {
        self.eras[module]
    }

    /// Return the index of a module in the run, by its name.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.modules.iter().position(|module| module == name)
    }

    /// Record that the only copy of a partition's items may be lost, of the module with this name or of all.
    pub fn loosen(&mut self, partition: PartitionId, module: Option<&str>, now: Duration) {
        let Self { keys, modules, .. } = self;
        let of =
            |key: &Key| key.partition == partition && module.is_none_or(|name| modules[key.module] == name);
        keys.iter_mut().filter(|key| of(key)).for_each(|key| key.loosen([None], now));
    }

    /// Record the end of the process that held a partition: what was in its memory is lost, and of durable items only
    /// what nobody was told of.
    pub fn crash(&mut self, partition: PartitionId, now: Duration) {
        let Self { keys, durable, .. } = self;
        for key in keys.iter_mut().filter(|key| key.partition == partition) {
            if !durable[key.module] {
                key.loosen([None], now);
            } else if let Some(left) = key.trail.left() {
                key.loosen(left, now);
            }
        }
    }

    /// Record that the disk that holds a partition was replaced by an older copy: durable items may have any value that
    /// they ever had.
    pub fn age(&mut self, partition: PartitionId, now: Duration) {
        let Self { keys, durable, .. } = self;
        for key in keys.iter_mut().filter(|key| key.partition == partition && durable[key.module]) {
            let ever = key.ever.clone();
            key.loosen(ever, now);
        }
    }

    /// Record that the durable items of a partition may be gone, because the disk that holds them was damaged.
    pub fn damage(&mut self, partition: PartitionId, now: Duration) {
        let Self { keys, durable, .. } = self;
        let lost = keys.iter_mut().filter(|key| key.partition == partition && durable[key.module]);
        lost.for_each(|key| key.loosen([None], now));
    }

    /// Record that several histories may be served from now on.
    pub fn shake(&mut self) {
        self.shaken = true;
    }

    /// Record that only one history remains: each key has one of the values that it ever had.
    pub fn settle(&mut self, now: Duration) {
        if std::mem::take(&mut self.shaken) {
            for key in &mut self.keys {
                let ever = key.ever.clone();
                key.loosen(ever, now);
            }
        }
    }

    /// Return true if several histories may be served.
    pub fn is_shaken(&self) -> bool {
        self.shaken
    }

    /// Return the number of requests that have no answer yet.
    pub fn open(&self) -> usize {
        self.requests.values().filter(|request| request.answer.is_none()).count()
    }
}

/// Check that an answer is in time. `what` names the request in the error.
///
/// # Errors
/// Returns [`Rule::EveryRequestEnds`] if `now` is more than 100 ms past the deadline (D12).
pub fn late(what: &str, now: Duration, issued: Duration, limit: Duration) -> Result<(), Broken> {
    let late = now.saturating_sub(issued + limit);
    if late > SLACK {
        return Err(
            Rule::EveryRequestEnds.broken(format!("{what} had {limit:?} and was answered {late:?} later"))
        );
    }
    Ok(())
}

/// Return the name of a key, as clients send it.
pub fn name(at: usize) -> String {
    format!("key{at}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn truth() -> Truth {
        Truth::new(&["kv".to_owned()], RingSize::try_from(8).unwrap(), 1)
    }

    fn by(op: Op, partition: PartitionId, found: Option<u64>) -> Effect {
        Effect { op, partition, found, era: 0, now: NOW }
    }

    fn put(truth: &mut Truth, value: u64) -> Op {
        let (op, at) = (truth.issue(0, Want::Put(value), NOW, NOW), truth.keys[0].partition);
        truth.effect(by(op, at, None)).unwrap();
        truth.answered(op, Ok(()), NOW, false).unwrap();
        op
    }

    fn get(truth: &mut Truth, found: Option<u64>) -> Result<(), Rule> {
        let (op, at) = (truth.issue(0, Want::Get, NOW, NOW), truth.keys[0].partition);
        truth.effect(by(op, at, found)).map_err(|broken| broken.rule)
    }

    #[test]
    fn a_read_finds_the_last_written_value() {
        let mut truth = truth();
        assert_eq!(get(&mut truth, Some(1)), Err(Rule::Resurrected));
        put(&mut truth, 1);
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, None)), (Ok(()), Err(Rule::LostWrite)));
        assert_eq!((truth.counts.acknowledged, truth.counts.lost, truth.counts.resurrected), (1, 1, 1));
    }

    #[test]
    fn after_a_loss_a_key_has_its_value_or_none_and_keeps_the_one_that_was_read() {
        let mut truth = truth();
        put(&mut truth, 1);
        truth.loosen(truth.keys[0].partition, None, NOW);
        assert_eq!(get(&mut truth, Some(7)), Err(Rule::LostWrite));
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, None)), (Ok(()), Err(Rule::LostWrite)));
        truth.loosen(truth.keys[0].partition, None, NOW);
        assert_eq!((get(&mut truth, None), get(&mut truth, Some(1))), (Ok(()), Err(Rule::Resurrected)));
        put(&mut truth, 2);
        assert_eq!(get(&mut truth, None), Err(Rule::LostWrite));
    }

    /// Apply a put without an answer.
    fn run(truth: &mut Truth, value: u64) -> Op {
        let (op, at) = (truth.issue(0, Want::Put(value), NOW, NOW), truth.keys[0].partition);
        truth.effect(by(op, at, None)).unwrap();
        op
    }

    fn crash(truth: &mut Truth) {
        truth.crash(truth.keys[0].partition, NOW);
    }

    #[test]
    fn a_crash_loses_nothing_durable_that_was_acknowledged() {
        let mut truth = truth();
        truth.keeps(0, true);
        put(&mut truth, 1);
        crash(&mut truth);
        assert_eq!((get(&mut truth, None), get(&mut truth, Some(1))), (Err(Rule::LostWrite), Ok(())));
        truth.keeps(0, false);
        crash(&mut truth);
        assert_eq!(get(&mut truth, None), Ok(()), "items in memory are lost");
    }

    #[test]
    fn a_write_that_a_store_refuses_is_judged_by_the_fate_of_its_module() {
        let mut truth = truth();
        truth.keeps(0, true);
        let op = run(&mut truth, 1);
        let refused = RequestError::not_applied(ErrorCode::NotReady, "the store is closed");
        truth.answered(op, Err(&refused), NOW, false).unwrap();
        assert_eq!(truth.check_untaken().unwrap_err().rule, Rule::AnswerTells);
        truth.begins(0, 1, NOW);
        truth.check_untaken().unwrap();
        let op = run(&mut truth, 2);
        let refused = RequestError::not_applied(ErrorCode::Overloaded, "another reason");
        let broken = truth.answered(op, Err(&refused), NOW, false).unwrap_err();
        assert_eq!(broken.rule, Rule::AnswerTells);
    }

    #[test]
    fn a_crash_may_undo_what_nobody_was_told_of() {
        let mut truth = truth();
        truth.keeps(0, true);
        put(&mut truth, 1);
        run(&mut truth, 2);
        crash(&mut truth);
        assert_eq!(get(&mut truth, None), Err(Rule::LostWrite), "1 or 2, but not none");
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, Some(2))), (Ok(()), Err(Rule::LostWrite)));
        // A read of an unanswered write tells of it, once the read is answered.
        run(&mut truth, 3);
        let op = truth.issue(0, Want::Get, NOW, NOW);
        truth.effect(by(op, truth.keys[0].partition, Some(3))).unwrap();
        assert!(truth.keys[0].trail.left().is_some(), "the reply has not left");
        truth.answered(op, Ok(()), NOW, false).unwrap();
        crash(&mut truth);
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, Some(3))), (Err(Rule::LostWrite), Ok(())));
        // An answer to an earlier write leaves the later one open.
        let first = run(&mut truth, 4);
        run(&mut truth, 5);
        truth.answered(first, Ok(()), NOW, false).unwrap();
        crash(&mut truth);
        assert_eq!((get(&mut truth, Some(3)), get(&mut truth, Some(4))), (Err(Rule::LostWrite), Ok(())));
    }

    #[test]
    fn an_older_disk_may_have_any_earlier_value_and_a_damaged_one_none() {
        let mut truth = truth();
        truth.keeps(0, true);
        put(&mut truth, 1);
        put(&mut truth, 2);
        let mut damaged = truth.keys[0].clone();
        truth.age(truth.keys[0].partition, NOW);
        assert_eq!((get(&mut truth, Some(7)), get(&mut truth, Some(1))), (Err(Rule::LostWrite), Ok(())));
        std::mem::swap(&mut truth.keys[0], &mut damaged);
        truth.damage(truth.keys[0].partition, NOW);
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, None)), (Err(Rule::LostWrite), Ok(())));
    }

    #[test]
    fn a_write_is_applied_once_and_its_answer_must_be_true_and_in_time() {
        let mut truth = truth();
        let (op, at) = (put(&mut truth, 1), truth.keys[0].partition);
        assert_eq!(truth.effect(by(op, at, None)).unwrap_err().rule, Rule::Twice);
        let refused = RequestError::not_applied(annulus_core::request::ErrorCode::NotReady, "not yet");
        let op = truth.issue(0, Want::Put(2), NOW, NOW);
        truth.answered(op, Err(&refused), NOW, false).unwrap();
        assert_eq!(truth.effect(by(op, at, None)).unwrap_err().rule, Rule::AnswerTells);
        let op = truth.issue(0, Want::Put(3), NOW, NOW);
        assert_eq!(truth.answered(op, Ok(()), NOW, false).unwrap_err().rule, Rule::LostWrite);
        let op = truth.issue(0, Want::Delete, NOW, NOW);
        let late = truth.answered(op, Err(&refused), NOW * 3, false).unwrap_err();
        assert_eq!((late.rule, truth.open()), (Rule::EveryRequestEnds, 0));
    }
}
