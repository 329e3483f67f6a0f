//! What a command that goes everywhere must have in its answer (R17): every key that was there all the time, no key
//! that was there at no time, none twice; but for the partitions that it names as missing.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_core::keyspace::PartitionId;

use super::truth::Truth;
use crate::rule::{Broken, Rule};

/// Compares an answer with the truth from `since` until now.
///
/// # Errors
/// The rule that is broken.
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
            return Err(Rule::Coverage.broken(format!("k{key} is in one answer twice")));
        }
    }
    for key in truth.of_module(module) {
        let (was_there, was_away) = truth.over(key, since);
        let partition = truth.partition(key);
        let in_answer = found.contains(&key);
        if in_answer && !was_there {
            return Err(
                Rule::Coverage.broken(format!("k{key} is in the answer, and was not there since {since:?}"))
            );
        }
        if !in_answer && !was_away && !missing.contains(&partition) {
            let what = format!(
                "k{key} is not in the answer, and was there since {since:?}; p{} is not named as missing",
                partition.0
            );
            return Err(Rule::Coverage.broken(what));
        }
    }
    Ok(())
}
