//! Every fault that is put back on purpose is noticed: by whole nodes within a few seeds, or by the test of a
//! part that has a row here.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use annulus_harness::guest::{OneIn, Oversize, Script, Slow};
use annulus_sim::rule::{Broken, Rule};
use annulus_sim::schedule::{Act, Planned};
use annulus_sim::{Mutant, Settings, run};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Within so many seeds each is noticed, or is not.
const SEEDS: u64 = 60;

/// What happens to the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    /// What a seed has happen anyway.
    Usual,
    /// [`rough`].
    Rough,
    /// [`coming`].
    Coming,
    /// [`moving`], with guests whose calls last for seconds.
    Sluggish,
    /// The same, with items larger than a frame.
    Bulky,
}

use Schedule::{Bulky, Coming, Rough, Sluggish, Usual};

/// What whole nodes notice, and the rules that it breaks there: what breaks others does not count.
const NOTICED: &[(Mutant, Schedule, &[Rule])] = &[
    (Mutant::ForgetSeal, Rough, &[Rule::Carried, Rule::OneTruth, Rule::LostWrite]),
    (Mutant::ServeWhileSealed, Usual, &[Rule::Carried, Rule::OneTruth, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::AssumeNotFlipped, Usual, &[Rule::Carried, Rule::OneTruth, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::FlipTheCancelled, Rough, &[Rule::Carried, Rule::OneTruth, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::ServeStaleVersions, Usual, &[Rule::OneTruth]),
    (Mutant::RepeatANode, Usual, &[Rule::Completes]),
    (Mutant::KeepStage, Rough, &[Rule::Carried, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::RetryUnknown, Usual, &[Rule::Twice, Rule::AnswerTells]),
    (Mutant::AckEarly, Usual, &[Rule::LostWrite]),
    (Mutant::LoseForward, Usual, &[Rule::Carried, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::LoseForwardWhileHeld, Usual, &[Rule::Carried, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::NoDeadline, Usual, &[Rule::EveryRequestEnds]),
    (Mutant::JoinOverModules, Usual, &[Rule::LostWrite]),
    (Mutant::FollowUnread, Usual, &[Rule::LostWrite, Rule::Completes]),
    (Mutant::UndeployWhatFailed, Usual, &[Rule::LostWrite]),
    (Mutant::GrowWhileJoining, Coming, &[Rule::LostWrite]),
    (Mutant::WriteTheNewestFormat, Usual, &[Rule::ReadBefore]),
    (Mutant::SealTheBusy, Sluggish, &[Rule::Prompt]),
    (Mutant::OneFrameForAMessage, Bulky, &[Rule::Completes]),
    (Mutant::LoseAnItem, Usual, &[Rule::Carried]),
    (Mutant::KeepStreamTask, Usual, &[Rule::Leaks]),
    (Mutant::KeepItems, Usual, &[Rule::Leaks]),
    (Mutant::KeepComponents, Usual, &[Rule::Leaks]),
];

const MACHINES: &str = "host/core/tests/handoff_machines.rs";
const COMPARING: &str = "host/core/tests/machines/comparing.rs";
const MASTER: &str = "host/vnode/src/master/tests.rs";

/// What the test of a part notices: its file, and its name.
const ELSEWHERE: &[(Mutant, &str, &str)] = &[
    // A node applies what it is shown in the order in which it is shown.
    (Mutant::EndWhatIsNewer, MASTER, "a_fault_that_lets_an_older_state_end_newer_vnodes_is_seen"),
    // A guest would have to trap in the swap of a stage that is complete.
    (Mutant::PromoteWhatTrapped, MASTER, "a_fault_that_promotes_what_trapped_is_seen"),
    // No item of a script is larger than a handoff carries.
    (
        Mutant::TakeAcceptForProgress,
        MACHINES,
        "a_message_that_can_never_be_sent_does_not_keep_a_partition_sealed",
    ),
    // Its tables are sound, and what they move too much is moved back.
    (
        Mutant::RebalanceWithoutBase,
        "host/core/src/state/tests.rs",
        "a_table_that_was_made_from_another_ring_is_not_aimed_at",
    ),
    // What is missing or there twice is refused at the end of the stream.
    (Mutant::FillTheNextStage, MASTER, "a_fault_that_fills_the_next_stage_is_seen"),
    // Whoever finds its stage gone says so, and it is filled again.
    (Mutant::StageWhatIsOver, MASTER, "a_fault_that_lets_a_transfer_that_is_over_take_a_stage_is_seen"),
    // A partition is one page, so that what comes into the wrong stream is the right page.
    (Mutant::ReadForAnotherTransfer, MASTER, "a_fault_that_lets_two_drivers_share_a_stream_is_seen"),
    // A holder that starts again has no items in memory that it could stream.
    (Mutant::StreamAgainUnderAFlip, MACHINES, "nothing_is_streamed_again_once_a_flip_may_have_been_proposed"),
    // A stage that is dropped so is filled again, or its transfer is cancelled.
    (Mutant::DropAtBegin, COMPARING, "a_stream_that_was_given_up_and_comes_late_costs_no_stage"),
    // The host compares no stages yet.
    (Mutant::BelieveLostAnswers, COMPARING, "an_answer_that_is_lost_with_its_link_is_not_taken_for_a_yes"),
    // Nothing is lost on the way.
    (Mutant::IgnoreEndDigest, COMPARING, "an_item_that_is_lost_on_the_way_is_missed_at_the_end"),
    // Scripted guests merge by version, whichever comes first.
    (
        Mutant::LatePage,
        "host/harness/tests/guests/moves.rs",
        "a_page_is_in_the_stream_before_what_is_written_after_it",
    ),
    // No rule says when a guest may start.
    (Mutant::DeadlineNotChecked, MASTER, "what_comes_to_its_turn_after_its_deadline_is_not_started"),
    // A member would have to be away for a thousand entries.
    (
        Mutant::PurgeBeforeItsSnapshot,
        "host/harness/tests/raft_storage.rs",
        "a_purge_before_its_snapshot_is_seen",
    ),
    // No rule bounds what a sender keeps.
    (Mutant::NeverCongested, MACHINES, "writers_wait_for_a_receiver_that_is_behind"),
    // `unknown` is true of everything.
    (
        Mutant::DropCallsWhileStarting,
        "host/node/src/tests/not_ready.rs",
        "a_command_of_a_peer_to_a_node_that_is_not_ready_is_known_not_to_be_applied",
    ),
];

/// How many nodes a rough time begins with.
const NODES: usize = 3;

/// A slow network, so that a seal lasts, and nodes that are away for a moment again and again.
fn rough(seed: u64, time: Duration) -> Vec<Planned> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut acts = vec![(Duration::ZERO, Act::Slow { times: 40, lasts: time })];
    let mut again = |every: u64, mut act: Box<dyn FnMut(&mut SmallRng) -> Act>| {
        let mut now = Duration::ZERO;
        loop {
            now += Duration::from_millis(random.random_range(every / 2..every * 3 / 2));
            if now >= time {
                return;
            }
            acts.push((now, act(&mut random)));
        }
    };
    let lasts = |random: &mut SmallRng, most| Duration::from_millis(random.random_range(1..most));
    let any = |random: &mut SmallRng| random.random_range(0..NODES);
    again(700, Box::new(move |r| Act::Kill { at: any(r), lasts: lasts(r, 60), power: false }));
    again(2_700, Box::new(move |r| Act::Pause { at: any(r), lasts: lasts(r, 1500) }));
    again(
        2_700,
        Box::new(move |r| {
            let (from, to) = (any(r), any(r));
            let ways = [(from, to), (to, from)].into_iter().take(r.random_range(1..=2));
            Act::Cut { ways: ways.filter(|(from, to)| from != to).collect(), lasts: lasts(r, 2500) }
        }),
    );
    let mut joined = 0;
    let moves = move |r: &mut SmallRng| {
        if joined < 3 && r.random_bool(0.6) {
            joined += 1;
            return Act::Join { pick: 7 };
        }
        joined = joined.max(1) - 1;
        Act::Leave { pick: r.random() }
    };
    again(1500, Box::new(moves));
    acts.sort_by_key(|(at, _)| *at);
    acts
}

/// Nodes that join one after the other over a slow network, and get a module of their own meanwhile.
fn coming(seed: u64, time: Duration) -> Vec<Planned> {
    let mut random = SmallRng::seed_from_u64(seed);
    let joins = (0..6).map(|number| {
        let pick = 8 * random.random_range(0..30) + 1;
        (Duration::from_secs(3 * number), Act::Join { pick })
    });
    let slow = (Duration::ZERO, Act::Slow { times: 20, lasts: time });
    std::iter::once(slow).chain(joins).collect()
}

/// Nothing but nodes that come and go.
fn moving(seed: u64, time: Duration) -> Vec<Planned> {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut acts, mut now, mut joined) = (Vec::new(), Duration::ZERO, 0);
    while now < time {
        let joins = joined < 2;
        joined = if joins { joined + 1 } else { 0 };
        acts.push((now, if joins { Act::Join { pick: 7 } } else { Act::Leave { pick: random.random() } }));
        now += Duration::from_millis(random.random_range(1_500..3_500));
    }
    acts
}

fn settings(seed: u64, schedule: Schedule, mutant: Option<Mutant>) -> Settings {
    let settings = Settings { mutant, ..Settings::default() };
    let (unrest, long) = (settings.unrest, Duration::from_secs(40));
    let directed = |modules, schedule, guests| Settings {
        nodes: Some(NODES),
        modules: Some(modules),
        schedule: Some(schedule),
        guests,
        ..settings.clone()
    };
    match schedule {
        Usual => settings,
        Rough => Settings { unrest: long, ..directed(1, rough(seed, long), None) },
        Coming => directed(1, coming(seed, unrest), None),
        Sluggish => {
            let slow = Slow { calls: OneIn(4), ms: 3_000..=4_500 };
            directed(2, moving(seed, unrest), Some(Script { slow, ..Script::default() }))
        }
        Bulky => {
            let oversize = Oversize { values: OneIn::ALWAYS, bytes: 2 << 20..=3 << 20 };
            directed(2, moving(seed, unrest), Some(Script { oversize, ..Script::default() }))
        }
    }
}

fn broken(seed: u64, schedule: Schedule, mutant: Option<Mutant>) -> Option<Broken> {
    run(seed, &settings(seed, schedule, mutant)).broken
}

/// The first seed that notices it, and how.
fn noticed(mutant: Mutant, schedule: Schedule, rules: &[Rule]) -> Option<(u64, Broken)> {
    (0..SEEDS).find_map(|seed| {
        let broken_with = broken(seed, schedule, Some(mutant))?;
        let counts = rules.contains(&broken_with.rule);
        // What breaks in this seed without it is not its own.
        (counts && broken(seed, schedule, None).is_none()).then_some((seed, broken_with))
    })
}

/// Does something with all of these in two threads; answers those of which it was false.
fn those_without<T: Copy + Sync + Send>(all: &[T], holds: impl Fn(T) -> bool + Sync) -> Vec<T> {
    let (next, without) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !holds(*one) {
                        without.lock().unwrap().push(*one);
                    }
                }
            });
        }
    });
    without.into_inner().unwrap()
}

#[test]
fn whole_nodes_notice_what_they_are_said_to_notice() {
    let missed = those_without(NOTICED, |(mutant, schedule, rules)| {
        let found = noticed(mutant, schedule, rules);
        if let Some((seed, how)) = &found {
            println!("{mutant} ({}), {schedule:?}: seed {seed}: {how}", mutant.rule());
        }
        found.is_some()
    });
    assert!(missed.is_empty(), "not noticed within {SEEDS} seeds: {missed:?}");
}

#[test]
fn what_another_test_notices_is_put_back_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (mutant, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let from = text.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{file} has no test {test}"));
        let test = text[from..].split("\n}\n").next().unwrap();
        assert!(test.contains(&format!("Mutant::{mutant}")), "{file} does not put {mutant} back");
    }
}

#[test]
fn every_fault_has_one_row() {
    let mut rows: BTreeMap<Mutant, usize> = Mutant::ALL.iter().map(|mutant| (*mutant, 0)).collect();
    let noticed = NOTICED.iter().map(|(mutant, ..)| mutant);
    let elsewhere = ELSEWHERE.iter().map(|(mutant, ..)| mutant);
    for mutant in noticed.chain(elsewhere) {
        *rows.get_mut(mutant).unwrap() += 1;
    }
    rows.retain(|_, rows| *rows != 1);
    assert!(rows.is_empty(), "these have not one row: {rows:?}");
}
