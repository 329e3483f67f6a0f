//! The truth of every key, and what clients are told of it.
//!
//! What a vnode does is reported where it does it, so the truth changes at the point of effect, not where
//! somebody hears of it. A vnode must be the one that the newest state names, and answer the truth. Where the
//! only copy of a partition may have ended with its holder, its keys may have their values or none, until they
//! are written again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_core::keyspace::{PartitionId, RingSize, hash_key};
use annulus_core::request::{AppliedState, ErrorCode, RequestError};

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
    module: usize,
    partition: PartitionId,
    value: Option<u64>,
    /// The only copy may be gone: all of these are good.
    loose: Option<BTreeSet<Option<u64>>>,
    /// When it changed, and whether it might have been there and might have been away from then on.
    past: Vec<(Duration, bool, bool)>,
    /// Everything that it ever was.
    ever: BTreeSet<Option<u64>>,
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

    fn loosen(&mut self, now: Duration) {
        let value = self.value;
        self.loose.get_or_insert_with(|| [value].into()).insert(None);
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

/// A command that was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Effect {
    /// Which request's.
    pub op: Op,
    /// Where.
    pub partition: PartitionId,
    /// What a read found.
    pub found: Option<u64>,
    /// Which of the modules that have had this name did it: each is later than those before.
    pub era: u64,
    /// When.
    pub now: Duration,
}

/// The truth of a run.
pub struct Truth {
    keys: Vec<Key>,
    modules: Vec<String>,
    eras: Vec<u64>,
    /// Several histories may be served at once, since an operator has recovered the cluster: of a key all is good
    /// that it ever was.
    shaken: bool,
    requests: BTreeMap<Op, Request>,
    next: Op,
    /// What clients were told.
    pub counts: Counts,
}

/// How much later than its deadline an answer may come: timers tick in milliseconds, and tasks are put off.
const SLACK: Duration = Duration::from_millis(100);

impl Truth {
    /// So many keys of some modules in turn, none with a value.
    pub fn new(modules: &[String], size: RingSize, keys: usize) -> Self {
        let key = |at: usize| {
            let module = at % modules.len();
            let partition = size.partition_of(&hash_key(modules[module].as_bytes(), name(at).as_bytes()));
            let past = vec![(Duration::ZERO, false, true)];
            Key { module, partition, value: None, loose: None, past, ever: [None].into() }
        };
        Self {
            keys: (0..keys).map(key).collect(),
            modules: modules.to_vec(),
            eras: vec![0; modules.len()],
            shaken: false,
            requests: BTreeMap::new(),
            next: 1,
            counts: Counts::default(),
        }
    }

    /// The name of a key's module.
    pub fn module(&self, key: usize) -> &str {
        &self.modules[self.keys[key].module]
    }

    /// The keys of a module.
    pub fn of_module(&self, module: usize) -> impl Iterator<Item = usize> {
        self.keys.iter().enumerate().filter(move |(_, key)| key.module == module).map(|(at, _)| at)
    }

    /// Where a key is.
    pub fn partition(&self, key: usize) -> PartitionId {
        self.keys[key].partition
    }

    /// Might a key have been there at any time since then, and might it have been away?
    pub fn over(&self, key: usize, since: Duration) -> (bool, bool) {
        let past = &self.keys[key].past;
        let from = past.partition_point(|(at, ..)| *at < since).saturating_sub(1);
        let over = past[from..].iter();
        let seen = over.fold((false, false), |seen, (_, there, away)| (seen.0 | there, seen.1 | away));
        if self.shaken { (true, true) } else { seen }
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

    /// A vnode has carried a request out.
    ///
    /// # Errors
    /// The rule that this breaks.
    pub fn effect(&mut self, effect: Effect) -> Result<(), Broken> {
        let Effect { op, partition, found, era, now } = effect;
        let Some(request) = self.requests.get_mut(&op) else {
            return Err(Rule::Twice.broken(format!("#{op}, which nobody asked for, is carried out")));
        };
        let (key, want) = (request.key, request.want);
        if self.keys[key].partition != partition {
            return Err(Rule::OneTruth.broken(format!("#{op} of k{key} is carried out in p{}", partition.0)));
        }
        if want.writes() && std::mem::replace(&mut request.applied, true) {
            return Err(Rule::Twice.broken(format!("#{op} is carried out again")));
        }
        if want.writes() && request.answer == Some(Err(AppliedState::NotApplied)) {
            return Err(Rule::AnswerTells.broken(format!("#{op} was said to be not applied, and is now")));
        }
        let module = self.keys[key].module;
        self.begins(module, era, now);
        if era < self.eras[module] {
            // By a node that has not heard that the module is another one by now: it goes with the old one.
            return Ok(());
        }
        match want {
            Want::Get => return self.read(key, found, now, &format!("#{op}")),
            Want::Put(value) => self.keys[key].set(Some(value), now),
            Want::Delete => self.keys[key].set(None, now),
        }
        Ok(())
    }

    fn read(&mut self, at: usize, found: Option<u64>, now: Duration, who: &str) -> Result<(), Broken> {
        let key = &mut self.keys[at];
        if self.shaken && key.ever.contains(&found) {
            return Ok(());
        }
        if key.allows(found) {
            if key.loose.is_some() {
                // Whatever became of it: it stays that.
                key.set(found, now);
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
        let (key, want) = (request.key, request.want);
        request.answer = Some(answer.map_err(|error| error.state));
        if !asleep && let Err(broken) = late(&format!("#{op}"), now, request.issued, request.limit) {
            self.counts.unanswered += 1;
            return Err(broken);
        }
        if let Err(error) = &answer
            && error.code == ErrorCode::Internal
        {
            return Err(
                Rule::AnswerTells.broken(format!("#{op} is answered by a fault of the host: {error}"))
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

    /// A module is there that may be another one than had its name before: it begins without items.
    pub fn begins(&mut self, module: usize, era: u64, now: Duration) {
        if era > self.eras[module] {
            self.eras[module] = era;
            self.keys.iter_mut().filter(|key| key.module == module).for_each(|key| key.set(None, now));
        }
    }

    /// Which of the modules of its name a module is now.
    pub fn era(&self, module: usize) -> u64 {
        self.eras[module]
    }

    /// Where a module is among those of the run.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.modules.iter().position(|module| module == name)
    }

    /// The only copy of a partition's items may be gone: of all modules, or of the one with this name.
    pub fn loosen(&mut self, partition: PartitionId, module: Option<&str>, now: Duration) {
        let Self { keys, modules, .. } = self;
        let of =
            |key: &Key| key.partition == partition && module.is_none_or(|name| modules[key.module] == name);
        keys.iter_mut().filter(|key| of(key)).for_each(|key| key.loosen(now));
    }

    /// Several histories may be served from now on.
    pub fn shake(&mut self) {
        self.shaken = true;
    }

    /// One history is left; each key has some value that it had, and keeps it.
    pub fn settle(&mut self, now: Duration) {
        if std::mem::take(&mut self.shaken) {
            for key in &mut self.keys {
                key.loose = Some(key.ever.clone());
                key.note(now);
            }
        }
    }

    /// Is one of several histories served?
    pub fn is_shaken(&self) -> bool {
        self.shaken
    }

    /// Requests that have no answer yet.
    pub fn open(&self) -> usize {
        self.requests.values().filter(|request| request.answer.is_none()).count()
    }
}

/// Is an answer later than its deadline allows?
///
/// # Errors
/// It is (D12).
pub fn late(what: &str, now: Duration, issued: Duration, limit: Duration) -> Result<(), Broken> {
    let late = now.saturating_sub(issued + limit);
    if late > SLACK {
        return Err(
            Rule::EveryRequestEnds.broken(format!("{what} had {limit:?} and is answered {late:?} later"))
        );
    }
    Ok(())
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
    fn a_read_finds_what_was_written_last() {
        let mut truth = truth();
        assert_eq!(get(&mut truth, Some(1)), Err(Rule::Resurrected));
        put(&mut truth, 1);
        assert_eq!((get(&mut truth, Some(1)), get(&mut truth, None)), (Ok(()), Err(Rule::LostWrite)));
        assert_eq!((truth.counts.acknowledged, truth.counts.lost, truth.counts.resurrected), (1, 1, 1));
    }

    #[test]
    fn after_a_loss_a_key_has_its_value_or_none_and_keeps_what_was_found() {
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

    #[test]
    fn a_write_happens_once_and_answers_tell_of_it() {
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
