//! A partition handed around between three nodes that crash, over links that break, while one
//! client writes: nothing acknowledged is lost, nobody serves what it does not own, nothing
//! stays behind. Each seed is one history and replays exactly.
//!
//! The oracle is sharp: whenever a node serves, its items must be exactly what the client was
//! promised. The mutants at the end each break one rule and must be noticed.
#![allow(clippy::unwrap_used)]

mod simulation;

use simulation::{Mutant, World};

/// The first violation among so many seeds, if any.
fn violation(mutant: Option<Mutant>, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| World::new(seed, mutant).run().err().map(|what| (seed, what)))
}

/// For long runs by hand: `SEEDS=100000 FROM=400 cargo test -p annulus-core --test
/// handoff_simulation acknowledged`.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn no_acknowledged_write_is_lost_by_crashes_cuts_and_cancels() {
    let from = setting("FROM", 0);
    if let Some((seed, what)) = violation(None, from..from + setting("SEEDS", 400)) {
        panic!("seed {seed}: {what}");
    }
}

#[test]
fn the_simulation_reaches_what_it_is_for() {
    let mut seen = simulation::Seen::default();
    for seed in 0..400 {
        let mut world = World::new(seed, None);
        world.run().unwrap();
        seen.add(&world.seen);
    }
    println!("{seen:?}");
    assert!(
        seen.flips > 100
            && seen.cancels > 40
            && seen.resumes > 20
            && seen.writes > 10_000
            && seen.writes_during_handoff > 1000
            && seen.sealed_restarts > 20
            && seen.lost_stages > 5
            && seen.late_streams > 5
            && seen.holds > 100
            && seen.busy > 50
            && seen.dropped > 20
            && seen.adopted > 50
            && seen.differ > 50,
        "{seen:?}"
    );
}

macro_rules! caught {
    ($($name:ident: $mutant:ident,)*) => {$(
        #[test]
        fn $name() {
            let found = violation(Some(Mutant::$mutant), 0..3000);
            println!("{:?}: {found:?}", Mutant::$mutant);
            assert!(found.is_some(), "{:?} is not noticed", Mutant::$mutant);
        }
    )*};
}

caught! {
    a_seal_forgotten_by_a_restart_is_caught: ForgetSeal,
    an_unknown_proposal_taken_for_none_is_caught: AssumeNotFlipped,
    a_page_that_overtakes_a_write_is_caught: LatePage,
    a_stage_kept_after_a_cancel_is_caught: KeepStage,
    a_write_not_forwarded_is_caught: LoseForward,
    serving_while_sealed_is_caught: ServeWhileSealed,
    a_second_stage_under_one_flip_is_caught: StreamAgainUnderAFlip,
    dropping_a_stage_for_a_late_stream_is_caught: DropAtBegin,
    a_pause_that_loses_a_write_is_caught: LoseForwardWhileHeld,
    an_item_lost_on_the_way_and_not_counted_at_the_end_is_caught: IgnoreEndDigest,
    an_answer_lost_with_its_link_and_taken_for_a_yes_is_caught: BelieveLostAnswers,
    a_comparison_that_does_not_look_is_caught: CompareNothing,
}
