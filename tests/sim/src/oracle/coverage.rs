//! The oracle of coverage commands (R17).
//!
//! The answer must have every key that existed during the whole command, except those of partitions that it names as
//! missing. It must have no key that did not exist at any time during the command, and no key twice.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_core::keyspace::PartitionId;

use super::truth::Truth;
use crate::rule::{Broken, Rule};

/// Compare an answer with the truth from `since` until now.
///
/// # Errors
/// Returns [`Rule::Coverage`] if the answer is wrong.
pub fn check(
    truth: &Truth,
    module: usize,
    since: Duration,
    keys: &[usize],
    missing: &BTreeSet<PartitionId>,
) -> Result<(), Broken> {
    let mut found = BTreeSet::new();
    for key in keys {
        if !found.insert(*key) {
            return Err(Rule::Coverage.broken(format!("k{key} is in the answer twice")));
        }
    }
    for key in truth.of_module(module) {
        let (was_there, was_away) = truth.over(key, since);
        let partition = truth.partition(key);
        let in_answer = found.contains(&key);
        if in_answer && !was_there {
            return Err(Rule::Coverage
                .broken(format!("k{key} is in the answer, but has not existed since {since:?}")));
        }
        if !in_answer && !was_away && !missing.contains(&partition) {
            let what = format!(
                "k{key} is not in the answer, but has existed since {since:?}; p{} is not named as missing",
                partition.0
            );
            return Err(Rule::Coverage.broken(what));
        }
    }
    Ok(())
}
