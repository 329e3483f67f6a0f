//! Some hundred histories of a whole cluster; and that what is broken on purpose is noticed.
//!
//! For long runs: `cargo run --release -p annulus-tests -- sim --seeds N --from S`.
#![allow(clippy::unwrap_used)]

use std::thread;

use annulus_sim::{Mutant, Report, Seen, Settings, run};

fn failure(report: &Report) -> Option<String> {
    let broken = report.broken.as_ref()?;
    let last = report.last.join("\n");
    Some(format!("{last}\nseed {}: {}: {}", report.seed, broken.rule, broken.what))
}

/// The reports of seeds `0..seeds`, in order. Two threads share the work; a report depends on its seed
/// alone.
fn histories(seeds: u64) -> Vec<Report> {
    let half = |from: u64| (from..seeds).step_by(2).map(|seed| run(seed, &Settings::default()));
    let (even, odd) = thread::scope(|scope| {
        let odd = scope.spawn(|| half(1).collect::<Vec<_>>());
        (half(0).collect::<Vec<_>>(), odd.join().unwrap())
    });
    let mut reports: Vec<Report> = even.into_iter().chain(odd).collect();
    reports.sort_by_key(|report| report.seed);
    reports
}

#[test]
fn every_rule_holds_in_some_hundred_histories() {
    let mut seen = Seen::default();
    let (mut acknowledged, mut unknown) = (0, 0);
    for report in histories(200) {
        if let Some(failure) = failure(&report) {
            panic!("{failure}");
        }
        seen.add(&report.seen);
        acknowledged += report.counts.acknowledged;
        unknown += report.counts.unknown;
    }
    println!("{acknowledged} acknowledged, {unknown} unknown, {seen:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(acknowledged > 100_000 && unknown > 1000);
    assert!(seen.flips > 1000 && seen.cancels > 100 && seen.forwards > 1000 && seen.resumes > 1, "{seen:?}");
    assert!(
        seen.crashes > 500 && seen.sealed_crashes > 5 && seen.cuts > 300 && seen.pauses > 200,
        "{seen:?}"
    );
    assert!(seen.elections > 200 && seen.lost_proposals > 5 && seen.orphans > 5, "{seen:?}");
    assert!(seen.joins > 100 && seen.leaves > 50 && seen.jumps > 100 && seen.commits > 20, "{seen:?}");
    assert!(seen.removals > 5 && seen.replaces > 2 && seen.orphaned > 10, "{seen:?}");
}

#[test]
fn a_seed_replays_exactly_and_another_is_another_history() {
    let settings = Settings::default();
    let (one, again, other) = (run(11, &settings), run(11, &settings), run(12, &settings));
    assert_eq!((&one.hash, one.events), (&again.hash, again.events));
    assert_eq!((&one.counts, &one.seen), (&again.counts, &again.seen));
    assert_ne!(one.hash, other.hash);
    // What is printed of it changes nothing.
    let whole = run(11, &Settings { whole_trace: true, ..settings });
    assert_eq!(one.hash, whole.hash);
    assert_eq!(whole.all.map(|all| all.len() as u64), Some(one.events));
}

/// The first of so many seeds that notices.
fn caught(mutant: Mutant, seeds: u64) {
    let settings = Settings { mutant: Some(mutant), ..Settings::default() };
    let broken = (0..seeds).find_map(|seed| run(seed, &settings).broken.map(|broken| (seed, broken)));
    let Some((seed, broken)) = broken else { panic!("{mutant:?} is not noticed in {seeds} seeds") };
    println!("{mutant:?}: seed {seed}: {}: {}", broken.rule, broken.what);
}

macro_rules! caught {
    ($($name:ident: $mutant:ident,)*) => {$(
        #[test]
        fn $name() {
            caught(Mutant::$mutant, 600);
        }
    )*};
}

caught! {
    a_seal_that_a_restart_forgets_is_caught: ForgetSeal,
    serving_while_sealed_is_caught: ServeWhileSealed,
    an_unknown_proposal_taken_for_none_is_caught: AssumeNotFlipped,
    a_stage_kept_after_a_cancel_is_caught: KeepStage,
    a_write_not_forwarded_is_caught: LoseForward,
    a_page_that_overtakes_a_write_is_caught: LatePage,
    serving_by_an_older_version_is_caught: ServeStaleVersions,
    an_acknowledgement_sent_early_is_caught: AckEarly,
    sending_again_what_may_have_happened_is_caught: RetryUnknown,
    starting_after_the_deadline_is_caught: DeadlineNotChecked,
    waiting_without_a_deadline_is_caught: NoDeadline,
    the_flip_of_a_cancelled_transfer_is_caught: FlipTheCancelled,
    a_rebalance_from_another_ring_is_caught: RebalanceWithoutBase,
    a_claim_that_repeats_a_node_is_caught: RepeatANode,
}
