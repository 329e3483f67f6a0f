//! The ring picture, in the format of riak_core's `riak_core_ring:pretty_print(Ring, [legend])`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::ids::NodeId;
use crate::ring::RingTable;

/// Letters in a group between two bars.
const GROUP: usize = 4;

/// Return the picture: a legend of the members by name with the share that each owns, and the owner of every
/// partition. Members are the letters `a`.. in the order of their names, or the numbers 1.. if there are more
/// than 26. The text ends with a newline.
///
/// The legend lists exactly `members`; an owner that is not among them is shown as `?`.
pub fn legend<'a>(ring: &RingTable, members: impl IntoIterator<Item = (NodeId, &'a str)>) -> String {
    let mut members: Vec<(NodeId, &str)> = members.into_iter().collect();
    members.sort_by_key(|(_, name)| *name);
    let letter = |at: usize| match members.len() {
        ..=26 => char::from(b'a' + at as u8).to_string(),
        _ => (at + 1).to_string(),
    };
    let letters: BTreeMap<NodeId, String> =
        members.iter().enumerate().map(|(at, (id, _))| (*id, letter(at))).collect();

    let mut picture = String::new();
    let mut line = |text: String| picture.extend([text.as_str(), "\n"]);
    line(format!("{:=<36} Nodes {:=<36}", "", ""));
    for (id, name) in &members {
        let owned = ring.owned_by(*id).count();
        let percent = 100.0 * owned as f64 / f64::from(ring.size.get());
        line(format!("Node {}: {owned} ({percent:5.1}%) {name}", letters[id]));
    }
    line(format!("{:=<36} Ring {:=<37}", "", ""));
    let mut owners = String::new();
    for (at, (id, _)) in ring.iter().enumerate() {
        let letter = letters.get(&ring.owner(id)).map_or("?", String::as_str);
        // Numbers may have more than one digit, so they need a separator.
        let space = if members.len() > 26 && at % GROUP != 0 { " " } else { "" };
        let bar = if at % GROUP == GROUP - 1 { "|" } else { "" };
        let _ = write!(owners, "{space}{letter}{bar}");
    }
    line(owners);
    picture
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keyspace::RingSize;
    use crate::ring::Partition;

    fn ring(owners: &str) -> RingTable {
        let owners = owners.bytes().filter(|byte| *byte != b'|').map(|byte| u64::from(byte - b'a'));
        let partitions: Vec<Partition> =
            owners.map(|owner| Partition::held_by(vec![NodeId(owner)], 1)).collect();
        RingTable { size: RingSize::try_from(partitions.len() as u32).unwrap(), epoch: 1, partitions }
    }

    const NAMES: [&str; 3] = ["rc_example1@127.0.0.1", "rc_example2@127.0.0.1", "rc_example3@127.0.0.1"];

    #[test]
    fn one_node_is_shown_as_in_the_tutorial() {
        let picture = "\
==================================== Nodes ====================================
Node a: 64 (100.0%) rc_example1@127.0.0.1
==================================== Ring =====================================
aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|
";
        assert_eq!(legend(&ring(&"a".repeat(64)), [(NodeId(0), NAMES[0])]), picture);
    }

    #[test]
    fn three_nodes_are_shown_as_in_the_tutorial_whatever_their_ids() {
        let picture = "\
==================================== Nodes ====================================
Node a: 21 ( 32.8%) rc_example1@127.0.0.1
Node b: 22 ( 34.4%) rc_example2@127.0.0.1
Node c: 21 ( 32.8%) rc_example3@127.0.0.1
==================================== Ring =====================================
abcc|abcc|abcc|abcc|abcc|abcc|abcc|abcc|abcc|abcc|abbc|abba|abba|abba|abba|abba|
";
        let last = picture.lines().last().unwrap();
        // The owner written as `a` has the last name: letters are assigned by name, not by id.
        let swapped: String = last
            .chars()
            .map(|c| match c {
                'a' => 'c',
                'c' => 'a',
                c => c,
            })
            .collect();
        let members = [(NodeId(0), NAMES[2]), (NodeId(1), NAMES[1]), (NodeId(2), NAMES[0])];
        assert_eq!(legend(&ring(&swapped), members), picture);
    }

    #[test]
    fn more_members_than_letters_are_numbered() {
        let names: Vec<String> = (0..27).map(|at| format!("n{at:02}@h")).collect();
        let members = names.iter().enumerate().map(|(at, name)| (NodeId(at as u64), name.as_str()));
        let picture = legend(&ring("abcdefgh"), members);
        let lines: Vec<&str> = picture.lines().collect();
        assert_eq!((lines[1], lines[27]), ("Node 1: 1 ( 12.5%) n00@h", "Node 27: 0 (  0.0%) n26@h"));
        assert_eq!(lines[29], "1 2 3 4|5 6 7 8|");
    }
}
