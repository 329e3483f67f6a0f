//! Failure detectors on a seeded network in virtual time.
#![allow(clippy::unwrap_used)]

mod net;

use super::*;
use net::{Net, peer, peers};

const SIZES: [usize; 6] = [2, 3, 5, 10, 30, 100];
const PROMISED: Duration = Duration::from_secs(2);

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Return the seeds to run: fewer for large clusters, which take longest.
fn seeds(size: usize) -> std::ops::Range<u64> {
    0..match size {
        0..10 => 10,
        10..50 => 4,
        _ => 2,
    }
}

/// Return the time for which a state is observed, for events that must not happen in it.
fn calm(size: usize) -> Duration {
    if size >= 100 { s(5) } else { s(20) }
}

/// Print the longest of several times, for `--nocapture`.
fn longest(what: &str, size: usize, times: &[Duration]) {
    println!("{what}, {size} nodes: at most {:?} in {} runs", times.iter().max().unwrap(), times.len());
}

#[test]
fn a_crash_is_seen_and_a_restart_too() {
    for size in SIZES {
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for seed in seeds(size) {
            let mut net = Net::settled(size, seed);
            net.run(ms(seed * 37));
            let victim = seed as usize % size;
            net.kill(victim);
            down.push(net.until("the dead one is down", |net| net.all_agree(&[victim]), PROMISED));
            net.run(calm(size));
            assert!(net.all_agree(&[victim]));
            net.start(victim, 2);
            up.push(net.until("it is back", |net| net.all_agree(&[]), PROMISED));
        }
        longest("crash", size, &down);
        longest("restart", size, &up);
    }
}

#[test]
fn a_stopped_process_is_down_until_it_resumes_and_blames_nobody() {
    for size in SIZES {
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for seed in seeds(size) {
            let mut net = Net::settled(size, seed);
            let victim = (seed as usize * 7) % size;
            net.stop(victim);
            down.push(net.until("the stopped one is down", |net| net.all_agree(&[victim]), PROMISED));
            net.run(calm(size));
            net.changes.clear();
            net.resume(victim);
            up.push(net.until("it is back", |net| net.all_agree(&[]), PROMISED));
            net.run(calm(size) / 2);
            let blamed: Vec<_> = net.changes.iter().filter(|change| !change.up).collect();
            assert!(blamed.is_empty(), "seed {seed}: {blamed:?}");
        }
        longest("stop", size, &down);
        longest("continued", size, &up);
    }
}

#[test]
fn a_node_that_slept_learns_of_a_death_that_it_missed() {
    for seed in seeds(5) {
        let mut net = Net::settled(30, seed);
        net.stop(4);
        net.run(s(5));
        net.kill(11);
        net.run(s(20));
        net.resume(4);
        net.until("the sleeper knows", |net| net.all_agree(&[11]), s(4));
        net.run(s(5));
        assert!(net.all_agree(&[11]));
    }
}

#[test]
fn a_node_that_is_cut_off_is_down_to_the_others_and_they_to_it_until_the_cut_heals() {
    for size in SIZES {
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for seed in seeds(size) {
            let mut net = Net::settled(size, seed);
            let victim = (seed as usize * 3) % size;
            let others: Vec<_> = (0..size).filter(|index| *index != victim).collect();
            net.isolate(&[victim]);
            let apart = |net: &Net| net.all_agree(&[victim]) && net.agrees(victim, &others);
            down.push(net.until("they are down to each other", apart, PROMISED));
            net.run(calm(size));
            net.changes.clear();
            net.cut.clear();
            up.push(net.until("all are back", |net| net.all_agree(&[]), PROMISED));
            net.run(calm(size) / 2);
            let blamed: Vec<_> = net.changes.iter().filter(|change| !change.up).collect();
            assert!(blamed.is_empty(), "seed {seed}: {blamed:?}");
        }
        longest("cut", size, &down);
        longest("healed", size, &up);
    }
}

#[test]
fn two_halves_know_themselves_only_and_each_other_when_the_cut_heals() {
    for size in [4, 30, 100] {
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for seed in seeds(size) {
            let mut net = Net::settled(size, seed);
            let (left, right): (Vec<_>, Vec<_>) = (0..size).partition(|index| index % 2 == 0);
            net.isolate(&left);
            let split = |net: &Net| {
                left.iter().all(|by| net.agrees(*by, &right)) && right.iter().all(|by| net.agrees(*by, &left))
            };
            // This takes longer than for one node, because members behind neighbours on the other side are
            // watched only once those neighbours are doubted.
            down.push(net.until("each side knows", split, s(4)));
            net.run(calm(size));
            assert!(split(&net));
            net.changes.clear();
            net.cut.clear();
            up.push(net.until("all are back", |net| net.all_agree(&[]), s(3)));
            net.run(calm(size) / 2);
            assert!(net.all_agree(&[]));
            // No node believes the other side's outdated reports about its own side.
            let blamed = net.changes.iter().filter(|change| !change.up && change.by % 2 == change.about % 2);
            let blamed: Vec<_> = blamed.collect();
            assert!(blamed.is_empty(), "seed {seed}: {blamed:?}");
        }
        longest("halves apart", size, &down);
        longest("halves together", size, &up);
    }
}

#[test]
fn a_fifth_of_all_packets_lost_takes_nobody_down() {
    for (size, seconds, seeds) in
        [(2, 600, 0..4), (3, 600, 0..2), (5, 300, 0..2), (30, 60, 0..1), (100, 30, 0..1)]
    {
        for seed in seeds {
            let mut net = Net::settled(size, seed);
            net.loss = 0.2;
            net.run(s(seconds));
            let downs: Vec<_> = net.changes.iter().filter(|change| !change.up).collect();
            assert!(downs.is_empty(), "{size} nodes, seed {seed}: {downs:?}");
        }
    }
}

#[test]
fn a_node_that_answers_300_ms_late_is_not_flapped_even_with_loss() {
    for size in [2, 5, 30] {
        for loss in [0.0, 0.05] {
            let mut net = Net::settled(size, 1);
            net.slow.insert(1, ms(300));
            net.loss = loss;
            net.run(s(180));
            assert!(net.changes.is_empty(), "{size} nodes, loss {loss}: {:?}", net.changes);
        }
    }
}

#[test]
fn a_node_that_is_held_up_again_and_again_neither_flaps_nor_blames() {
    let mut net = Net::settled(5, 3);
    for turn in 0..100 {
        net.stop(2);
        net.run(ms(300 + 7 * (turn % 60)));
        net.resume(2);
        net.run(ms(400));
    }
    assert!(net.changes.is_empty(), "{:?}", net.changes);
}

#[test]
fn a_cut_in_one_direction_between_two_nodes_takes_nobody_down() {
    for size in [3, 5, 30] {
        let mut net = Net::settled(size, 5);
        net.cut.insert((0, 1));
        net.run(s(60));
        net.cut.insert((1, 0));
        net.run(s(60));
        assert!(net.changes.is_empty(), "{size} nodes: {:?}", net.changes);
    }
}

#[test]
fn a_node_that_nobody_hears_or_that_hears_nobody_is_down_and_accuses_nobody() {
    for deaf in [true, false] {
        for size in [3, 30] {
            let mut net = Net::settled(size, 9);
            for other in 1..size {
                net.cut.insert(if deaf { (other, 0) } else { (0, other) });
            }
            net.until("it is down", |net| net.all_agree(&[0]), PROMISED);
            net.run(s(60));
            let others = net.changes.iter().filter(|change| change.by != 0 && change.about != 0);
            assert_eq!(others.count(), 0);
            assert!(net.all_agree(&[0]));
            net.cut.clear();
            net.until("it is back", |net| net.all_agree(&[]), PROMISED);
        }
    }
}

#[test]
fn a_node_whose_clock_went_back_counts_on_from_what_others_remember() {
    for size in [2, 5] {
        let mut net = Net::settled(size, 2);
        net.kill(1);
        net.run(s(10));
        net.start(1, 7);
        net.until("it is back", |net| net.all_agree(&[]), PROMISED);
        net.kill(1);
        net.run(s(10));
        net.start(1, 3);
        net.until("it is back from the past", |net| net.all_agree(&[]), PROMISED);
        // With two nodes, the other one must forget the generation, because it may have been partitioned
        // itself.
        assert!(size == 2 || net.nodes[1].generation() > Generation { boot: 7, renewed: 0 });
    }
}

#[test]
fn only_members_count() {
    let mut net = Net::new(4, 4);
    for index in 0..3 {
        net.handle(index, Event::Members(peers(3)));
    }
    // The fourth node believes that it is a member.
    net.run(s(10));
    assert!((0..3).all(|by| !net.nodes[by].is_up(peer(3).node)));
    assert!((0..3).all(|by| (0..3).all(|about| net.nodes[by].is_up(peer(about).node))));
    // Now it becomes one, for one node after the other.
    net.changes.clear();
    for index in 0..3 {
        net.handle(index, Event::Members(peers(4)));
        net.run(s(5));
    }
    assert!(net.all_agree(&[]));
    assert!(net.changes.iter().all(|change| change.up), "{:?}", net.changes);
    // The node is removed again: each node ignores it as soon as it knows of the removal.
    for index in 0..3 {
        net.handle(index, Event::Members(peers(3)));
        assert!(!net.nodes[index].is_up(peer(3).node));
    }
    net.run(s(30));
    assert!((0..3).all(|by| !net.nodes[by].is_up(peer(3).node)));
    assert!((0..3).all(|by| (0..3).all(|about| net.nodes[by].is_up(peer(about).node))));
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let run = |seed| {
        let mut net = Net::settled(10, seed);
        net.loss = 0.1;
        net.stop(3);
        net.run(s(20));
        net.resume(3);
        net.run(s(20));
        net.trace
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

#[test]
fn traffic_at_rest_does_not_grow_with_the_cluster_and_packets_are_small() {
    for size in [5, 10, 30, 100] {
        let mut net = Net::settled(size, 6);
        net.run(s(20));
        let per_node = |sum: u64| sum as f64 / 20.0 / size as f64;
        let (packets, bytes) = (per_node(net.packets), per_node(net.bytes));
        println!("at rest, {size} nodes: {packets:.1} packets, {bytes:.0} bytes per node per second");
        assert!(packets < 50.0 && bytes < 3000.0);
        assert!(net.largest <= MAX_PACKET);
    }
}

#[test]
fn at_rest_the_clock_wakes_a_node_for_its_pings_only() {
    for size in [1, 3, 10] {
        let mut net = Net::settled(size, 11);
        net.run(s(10));
        net.wakes = 0;
        net.run(s(20));
        let per_node = net.wakes as f64 / 20.0 / size as f64;
        println!("at rest, {size} nodes: {per_node:.1} wakings per node per second");
        // A node wakes for four pings per second, and for foca's probe with three timers every 2 s.
        assert!(per_node < 7.0);
    }
}

#[test]
fn a_member_that_joins_is_up_everywhere_at_once_and_costs_a_packet_or_two_of_each() {
    for size in [5, 10, 30, 100] {
        let mut net = Net::new(size, 7);
        let last = size - 1;
        net.kill(last);
        for index in 0..last {
            net.handle(index, Event::Members(peers(last)));
        }
        net.run(s(4));
        (net.packets, net.bytes) = (0, 0);
        for index in 0..last {
            net.handle(index, Event::Members(peers(size)));
        }
        net.start(last, 1);
        let took = net.until("all are up", |net| net.all_agree(&[]), PROMISED);
        net.run(s(2) - took);
        let per_node = |sum: u64| sum as f64 / 2.0 / size as f64;
        let (packets, bytes) = (per_node(net.packets), per_node(net.bytes));
        println!(
            "join, {size} nodes: up after {took:?}, {packets:.1} packets, {bytes:.0} bytes per node per second"
        );
        assert!(packets < 100.0 && bytes < 10_000.0);
    }
}

#[test]
fn junk_from_a_member_does_no_harm() {
    use rand::RngExt as _;
    let mut net = Net::settled(5, 8);
    let mut rng = StdRng::seed_from_u64(8);
    for _ in 0..2000 {
        let mut bytes = vec![0; rng.random_range(0..200)];
        rng.fill(&mut bytes[..]);
        if let Some(kind) = bytes.first_mut() {
            *kind %= 7;
        }
        net.handle(0, Event::Datagram { from: peer(1).uid, bytes: bytes.into() });
    }
    net.run(s(30));
    assert!(net.all_agree(&[]));
}
