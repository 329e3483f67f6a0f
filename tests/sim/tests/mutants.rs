//! Checks that every mutant (a known fault that a test can put back) is noticed: either by a simulation of whole nodes
//! within [`SEEDS`] seeds, or by the test of a single component that is listed here.
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

/// Number of seeds within which a simulation of whole nodes must notice a mutant.
const SEEDS: u64 = 100;

/// The schedule of faults and membership changes under which a mutant runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    /// The default schedule, which is drawn from the seed.
    Usual,
    /// The schedule of [`rough`].
    Rough,
    /// The schedule of [`coming`].
    Coming,
    /// The schedule of [`moving`], with guests that take seconds for some of their calls.
    Sluggish,
    /// The schedule of [`moving`], with items larger than a frame.
    Bulky,
}

use Schedule::{Bulky, Coming, Rough, Sluggish, Usual};

/// The mutants that a simulation of whole nodes notices, each with its schedule, a seed that noticed it, and the rules
/// that it may break. A violation of any other rule does not count. The seed is the one to try first: a later change of
/// the code may move it, and then the other seeds are searched.
const NOTICED: &[(Mutant, Schedule, u64, &[Rule])] = &[
    (Mutant::ForgetSeal, Rough, 36, &[Rule::Carried, Rule::OneTruth, Rule::LostWrite]),
    (
        Mutant::ServeWhileSealed,
        Usual,
        4,
        &[Rule::Carried, Rule::OneTruth, Rule::LostWrite, Rule::Resurrected],
    ),
    (
        Mutant::AssumeNotFlipped,
        Usual,
        58,
        &[Rule::Carried, Rule::OneTruth, Rule::LostWrite, Rule::Resurrected, Rule::Coverage],
    ),
    (
        Mutant::FlipTheCancelled,
        Rough,
        1,
        &[Rule::Carried, Rule::OneTruth, Rule::LostWrite, Rule::Resurrected],
    ),
    (Mutant::ServeStaleVersions, Usual, 0, &[Rule::OneTruth]),
    (Mutant::RepeatANode, Usual, 0, &[Rule::Completes]),
    (Mutant::KeepStage, Rough, 6, &[Rule::Carried, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::RetryUnknown, Usual, 0, &[Rule::Twice, Rule::AnswerTells]),
    (Mutant::AckEarly, Usual, 0, &[Rule::LostWrite]),
    (Mutant::AckBeforeSync, Usual, 11, &[Rule::LostWrite, Rule::Resurrected, Rule::Coverage]),
    (Mutant::LoseForward, Usual, 8, &[Rule::Carried, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::LoseForwardWhileHeld, Usual, 18, &[Rule::Carried, Rule::LostWrite, Rule::Resurrected]),
    (Mutant::NoDeadline, Usual, 0, &[Rule::EveryRequestEnds]),
    (Mutant::JoinOverModules, Usual, 4, &[Rule::LostWrite]),
    (Mutant::FollowUnread, Usual, 37, &[Rule::LostWrite, Rule::Completes]),
    (Mutant::UndeployWhatFailed, Usual, 66, &[Rule::LostWrite]),
    (Mutant::GrowWhileJoining, Coming, 7, &[Rule::LostWrite]),
    (Mutant::WriteTheNewestFormat, Usual, 2, &[Rule::ReadBefore]),
    (Mutant::SealTheBusy, Sluggish, 1, &[Rule::Prompt]),
    (Mutant::OneFrameForAMessage, Bulky, 1, &[Rule::Completes]),
    (Mutant::LoseAnItem, Usual, 2, &[Rule::Carried]),
    (Mutant::KeepStreamTask, Usual, 0, &[Rule::Leaks]),
    (Mutant::KeepItems, Usual, 1, &[Rule::Leaks]),
    (Mutant::KeepComponents, Usual, 18, &[Rule::Leaks]),
];

const MACHINES: &str = "host/core/tests/handoff_machines.rs";
const COMPARING: &str = "host/core/tests/machines/comparing.rs";
const REPLICAS: &str = "host/harness/tests/replicas.rs";
const MASTER: &str = "host/vnode/src/master/tests.rs";

/// The mutants that the test of a single component notices, each with the file and the name of that test. The comment
/// above a row gives the reason why a simulation of whole nodes does not notice the mutant.
const ELSEWHERE: &[(Mutant, &str, &str)] = &[
    // Modules with several replicas have seeds of their own.
    (Mutant::BuildingAnswers, REPLICAS, "every_broken_rule_is_noticed"),
    (Mutant::TrustEmptyMemory, REPLICAS, "every_broken_rule_is_noticed"),
    (Mutant::KeepToItself, REPLICAS, "every_broken_rule_is_noticed"),
    (Mutant::DropHint, REPLICAS, "what_other_nodes_have_kept_outlives_the_only_member_that_had_it"),
    (Mutant::ReadOneReplica, REPLICAS, "every_broken_rule_is_noticed"),
    // Replicas compare their items as soon as they meet, so few seeds have one that lacks any when its set gets smaller.
    (
        Mutant::FlipUnlevelled,
        "host/core/tests/plan.rs",
        "a_fault_that_flips_before_those_that_stay_are_level_is_detected",
    ),
    // No rule of the simulation compares dots.
    (Mutant::ReuseActor, "host/harness/tests/guests/stores.rs", "a_fault_that_reuses_an_actor_is_detected"),
    // A node applies states in log order, so the simulation never presents an older one.
    (Mutant::EndWhatIsNewer, MASTER, "a_fault_that_lets_an_older_state_end_newer_vnodes_is_detected"),
    // A guest would need to trap while a complete stage is being promoted.
    (Mutant::PromoteWhatTrapped, MASTER, "a_fault_that_promotes_a_trapped_stage_is_detected"),
    // No scripted item is larger than a handoff can carry.
    (
        Mutant::TakeAcceptForProgress,
        MACHINES,
        "a_message_that_can_never_be_sent_does_not_keep_a_partition_sealed",
    ),
    // The resulting tables are valid, and later moves undo the unnecessary ones.
    (
        Mutant::RebalanceWithoutBase,
        "host/core/src/state/tests.rs",
        "a_table_computed_from_another_ring_is_refused",
    ),
    // The check at the end of the stream refuses a stage with missing or duplicate items.
    (Mutant::FillTheNextStage, MASTER, "a_fault_that_fills_the_next_stage_is_detected"),
    // The receiver reports that its stage is gone, and the stage is filled again.
    (Mutant::StageWhatIsOver, MASTER, "a_fault_that_lets_a_transfer_that_is_over_take_a_stage_is_detected"),
    // A simulated partition fits on a single page, so even the wrong stream gets the right page.
    (Mutant::ReadForAnotherTransfer, MASTER, "a_fault_that_lets_two_drivers_share_a_stream_is_detected"),
    // An owner that has restarted no longer has the items in memory, so it cannot stream them again.
    (Mutant::StreamAgainUnderAFlip, MACHINES, "nothing_is_streamed_again_once_a_flip_may_have_been_proposed"),
    // The dropped stage is filled again, or the transfer is cancelled.
    (Mutant::DropAtBegin, COMPARING, "an_abandoned_stream_that_arrives_late_drops_no_stage"),
    // The host does not compare stages yet.
    (Mutant::BelieveLostAnswers, COMPARING, "an_answer_that_is_lost_with_its_link_is_not_taken_for_a_yes"),
    // The simulated network does not lose parts of a stream.
    (Mutant::IgnoreEndDigest, COMPARING, "an_item_that_is_lost_on_the_way_is_detected_at_the_end"),
    // Scripted guests merge items by version, so the order in which items arrive does not matter.
    (Mutant::LatePage, "host/harness/tests/guests/moves.rs", "a_page_precedes_later_writes_in_the_stream"),
    // No rule of the simulation restricts when a command may start.
    (Mutant::DeadlineNotChecked, MASTER, "a_command_after_its_deadline_is_not_started"),
    // A member would need to fall a thousand log entries behind.
    (
        Mutant::PurgeBeforeItsSnapshot,
        "host/harness/tests/raft_storage.rs",
        "a_purge_before_its_snapshot_is_detected",
    ),
    // No rule of the simulation limits the memory of a sender.
    (Mutant::NeverCongested, MACHINES, "writers_wait_for_a_receiver_that_is_behind"),
    // Callers get `unknown` for a dropped call, which is never a false answer.
    (
        Mutant::DropCallsWhileStarting,
        "host/node/src/tests/not_ready.rs",
        "a_command_of_a_peer_to_a_node_that_is_not_ready_is_known_not_to_be_applied",
    ),
];

/// Number of nodes at the start of a run. The usual schedule draws its own number.
const NODES: usize = 3;

/// Draw a schedule in which nodes are killed, paused and cut off for short times, and join and leave. The network is
/// slow, so that partitions stay sealed for a long time.
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

/// Draw a schedule in which nodes join one after another over a slow network. A module is deployed on each node while
/// it joins.
fn coming(seed: u64, time: Duration) -> Vec<Planned> {
    let mut random = SmallRng::seed_from_u64(seed);
    let joins = (0..6).map(|number| {
        let pick = 8 * random.random_range(0..30) + 1;
        (Duration::from_secs(3 * number), Act::Join { pick })
    });
    let slow = (Duration::ZERO, Act::Slow { times: 20, lasts: time });
    std::iter::once(slow).chain(joins).collect()
}

/// Draw a schedule that consists only of joins and leaves.
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

/// Return a seed whose run notices the mutant, and the rule that the mutant breaks.
fn noticed(mutant: Mutant, schedule: Schedule, known: u64, rules: &[Rule]) -> Option<(u64, Broken)> {
    std::iter::once(known).chain((0..SEEDS).filter(|seed| *seed != known)).find_map(|seed| {
        let broken_with = broken(seed, schedule, Some(mutant))?;
        let counts = rules.contains(&broken_with.rule);
        // If the run also breaks a rule without the mutant, the mutant is not the cause.
        (counts && broken(seed, schedule, None).is_none()).then_some((seed, broken_with))
    })
}

/// Call `holds` for every element, on two threads, and return the elements for which it returned false.
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
fn whole_nodes_notice_every_mutant_that_is_listed_for_them() {
    let missed = those_without(NOTICED, |(mutant, schedule, known, rules)| {
        let found = noticed(mutant, schedule, known, rules);
        if let Some((seed, how)) = &found {
            println!("{mutant} ({}), {schedule:?}: seed {seed}: {how}", mutant.rule());
        }
        found.is_some()
    });
    assert!(missed.is_empty(), "not noticed within {SEEDS} seeds: {missed:?}");
}

#[test]
fn the_listed_test_of_every_other_mutant_puts_it_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (mutant, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let from = text.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{file} has no test {test}"));
        let test = text[from..].split("\n}\n").next().unwrap();
        assert!(test.contains(&format!("Mutant::{mutant}")), "{file} does not put {mutant} back");
    }
}

#[test]
fn every_mutant_has_exactly_one_row() {
    let mut rows: BTreeMap<Mutant, usize> = Mutant::ALL.iter().map(|mutant| (*mutant, 0)).collect();
    let noticed = NOTICED.iter().map(|(mutant, ..)| mutant);
    let elsewhere = ELSEWHERE.iter().map(|(mutant, ..)| mutant);
    for mutant in noticed.chain(elsewhere) {
        *rows.get_mut(mutant).unwrap() += 1;
    }
    rows.retain(|_, rows| *rows != 1);
    assert!(rows.is_empty(), "mutants without a row, or with several: {rows:?}");
}
