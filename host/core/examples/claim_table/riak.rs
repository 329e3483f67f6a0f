//! riak_core's claim rules, as far as they are described in public. The ring is a list of owners; the
//! replicas of a partition are its owner and the owners of the next partitions.
//!
//! *v2*: a node with fewer than `Q div N` partitions takes the missing ones, one after the other, from nodes
//! that have more. It first takes those whose owner repeats within `n`, and never one next to which it would
//! repeat itself. If that leaves a repetition or a node without its share, or if the nodes are not more than
//! `n`, the whole ring is dealt out again in stripes, and its tail is mended if possible.
//!
//! *v4*: every node has `k` or `k + 1` partitions and no node (nor, as far as possible, any location) repeats
//! within `n`, with few transfers from the present ring; if no such solution exists, the ring is solved from
//! scratch. The choice of transfers is not described, so this implementation does what such rules allow: it
//! gives away surplus partitions where that repeats nothing, then mends by exchanges for as long as one
//! helps. Of mending and solving from scratch it takes the result with fewer repetitions, then with fewer
//! moves. The real rules may do somewhat better or worse.
//!
//! *Leave*: each partition of the leaver goes to the emptiest node that repeats nothing there; if no such
//! node exists for one of them, the whole ring is claimed again.

/// Owners in ring order.
pub type Owners = Vec<usize>;

/// The members, as (node, location) pairs.
pub type Nodes = [(usize, usize)];

/// The version of the claim rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V2,
    V4,
}

/// Return the ring after `node` has joined; `nodes` are all members, including `node`.
pub fn join(version: Version, owners: &Owners, nodes: &Nodes, node: usize, n: usize) -> Owners {
    match version {
        Version::V2 => v2(owners, nodes, node, n),
        Version::V4 => v4(owners, nodes, n),
    }
}

/// Return the ring after `node` has left; `nodes` are the remaining members.
pub fn leave(version: Version, owners: &Owners, nodes: &Nodes, node: usize, n: usize) -> Owners {
    let mut ring = owners.clone();
    for at in (0..ring.len()).filter(|at| owners[*at] == node) {
        let fits = |(other, _): &&(usize, usize)| !near(&ring, at, n).any(|near| near == *other);
        let emptiest = nodes.iter().filter(fits).min_by_key(|(other, _)| (count(&ring, *other), *other));
        match emptiest {
            Some((other, _)) => ring[at] = *other,
            None if version == Version::V2 => return deal(owners.len(), nodes, n),
            None => return v4(owners, nodes, n),
        }
    }
    match version {
        Version::V2 => ring,
        Version::V4 => v4(&ring, nodes, n),
    }
}

/// Count the partitions whose `n` consecutive owners repeat a node.
pub fn repeated_nodes(owners: &Owners, n: usize) -> usize {
    repeated(owners, n, &|node| node)
}

/// Count the partitions whose `n` consecutive owners repeat a location; 0 if there are fewer than `n`
/// locations.
pub fn repeated_locations(owners: &Owners, nodes: &Nodes, n: usize) -> usize {
    let location = location_of(nodes);
    let mut all: Vec<usize> = nodes.iter().map(|(_, at)| *at).collect();
    all.sort();
    all.dedup();
    if all.len() < n { 0 } else { repeated(owners, n, &location) }
}

fn repeated(owners: &Owners, n: usize, what: &dyn Fn(usize) -> usize) -> usize {
    let q = owners.len();
    let repeats = |at: &usize| {
        let set: Vec<usize> = (0..n).map(|next| what(owners[(at + next) % q])).collect();
        (1..n).any(|at| set[..at].contains(&set[at]))
    };
    (0..q).filter(repeats).count()
}

/// Return the owners within `n - 1` of a partition, on both sides.
fn near(owners: &Owners, at: usize, n: usize) -> impl Iterator<Item = usize> {
    let q = owners.len();
    (1..n).flat_map(move |far| [owners[(at + far) % q], owners[(at + q - far % q) % q]])
}

/// Return the location of a node; all nodes that are gone share one.
fn location_of(nodes: &Nodes) -> impl Fn(usize) -> usize {
    let mut of = vec![usize::MAX; nodes.iter().map(|(node, _)| node + 1).max().unwrap_or(0)];
    nodes.iter().for_each(|(node, at)| of[*node] = *at);
    move |node| of.get(node).copied().unwrap_or(usize::MAX)
}

fn count(owners: &Owners, node: usize) -> usize {
    owners.iter().filter(|owner| **owner == node).count()
}

fn v2(owners: &Owners, nodes: &Nodes, node: usize, n: usize) -> Owners {
    let (q, average) = (owners.len(), owners.len() / nodes.len());
    let enough = nodes.len() > n || nodes.len() == n && q % n == 0;
    if !enough {
        return deal(q, nodes, n);
    }
    let mut ring = owners.clone();
    while count(&ring, node) < average {
        let may = |at: &usize| {
            ring[*at] != node
                && count(&ring, ring[*at]) > average
                && !near(&ring, *at, n).any(|near| near == node)
        };
        let repeats = |at: &usize| (1..n).any(|far| ring[(at + far) % q] == ring[*at]);
        let Some(at) = (0..q).filter(|at| may(at)).min_by_key(|at| (!repeats(at), *at)) else { break };
        ring[at] = node;
    }
    if count(&ring, node) < average || repeated_nodes(&ring, n) > 0 { deal(q, nodes, n) } else { ring }
}

/// Deal out the whole ring in stripes of all nodes, with nodes of one location apart from each other. The
/// tail, which meets the head, is mended if some choice of nodes does that.
fn deal(q: usize, nodes: &Nodes, n: usize) -> Owners {
    let mut order: Vec<(usize, usize, usize)> = Vec::new();
    for (node, location) in nodes {
        let before = order.iter().filter(|(_, other, _)| other == location).count();
        order.push((before, *location, *node));
    }
    order.sort();
    let mut ring: Owners = (0..q).map(|at| order[at % order.len()].2).collect();
    let tail = (q % nodes.len() + n).min(q);
    let most = q.div_ceil(nodes.len());
    let mut tries = 100_000;
    if repeated_nodes(&ring, n) > 0 && nodes.len() >= n {
        let before = ring.clone();
        if !mend_tail(&mut ring, q - tail, q, nodes, most, n, &mut tries) {
            ring = before;
        }
    }
    ring
}

fn mend_tail(
    ring: &mut Owners,
    at: usize,
    q: usize,
    nodes: &Nodes,
    most: usize,
    n: usize,
    tries: &mut usize,
) -> bool {
    if at == q {
        return repeated_nodes(ring, n) == 0;
    }
    for (node, _) in nodes {
        *tries = tries.saturating_sub(1);
        let before = (1..n).any(|far| ring[(at + q - far) % q] == *node);
        let wraps = (1..n).any(|far| at + far >= q && ring[(at + far) % q] == *node);
        if *tries == 0 || before || wraps || count(&ring[..at].to_vec(), *node) >= most {
            continue;
        }
        ring[at] = *node;
        if mend_tail(ring, at + 1, q, nodes, most, n, tries) {
            return true;
        }
    }
    false
}

fn v4(owners: &Owners, nodes: &Nodes, n: usize) -> Owners {
    let better = |ring: &Owners| {
        let moved = ring.iter().zip(owners).filter(|(new, old)| new != old).count();
        (repeated_nodes(ring, n), repeated_locations(ring, nodes, n), moved)
    };
    let updated = mend(balance(owners, nodes, n), owners, nodes, n);
    let nothing_is_lost =
        |ring: &Owners| repeated_nodes(ring, n) == 0 && repeated_locations(ring, nodes, n) == 0;
    if nothing_is_lost(&updated) {
        return updated;
    }
    let solved = mend(deal(owners.len(), nodes, n), owners, nodes, n);
    if better(&solved) < better(&updated) { solved } else { updated }
}

/// Give every node `k` or `k + 1` partitions: a node with too many, or one that is gone, gives to one with
/// too few, where that repeats the least.
fn balance(owners: &Owners, nodes: &Nodes, n: usize) -> Owners {
    let (mut ring, q) = (owners.clone(), owners.len());
    let (low, extra) = (q / nodes.len(), q % nodes.len());
    // The nodes with the most partitions keep the extra one.
    let mut by_count: Vec<usize> = nodes.iter().map(|(node, _)| *node).collect();
    by_count.sort_by_key(|node| (std::cmp::Reverse(count(owners, *node)), *node));
    let location = location_of(nodes);
    let quota = |node: usize| {
        by_count.iter().position(|other| *other == node).map_or(0, |at| low + usize::from(at < extra))
    };
    loop {
        let short = nodes.iter().map(|(node, _)| *node).find(|node| count(&ring, *node) < quota(*node));
        let Some(short) = short else { return ring };
        let harm = |at: &usize| {
            let same = near(&ring, *at, n).filter(|near| *near == short).count();
            let close = near(&ring, *at, n).filter(|near| location(*near) == location(short)).count();
            (same, close, *at)
        };
        let over = |at: &usize| count(&ring, ring[*at]) > quota(ring[*at]);
        let Some(at) = (0..q).filter(over).min_by_key(harm) else { return ring };
        ring[at] = short;
    }
}

/// Exchange the owners of two partitions for as long as that reduces the repetitions.
fn mend(mut ring: Owners, owners: &Owners, nodes: &Nodes, n: usize) -> Owners {
    let q = ring.len();
    let location = location_of(nodes);
    let mut locations: Vec<usize> = nodes.iter().map(|(_, at)| *at).collect();
    locations.sort();
    locations.dedup();
    let located = locations.len() >= n;
    // The repetitions around one partition; an exchange changes only those of its two partitions.
    let wrong = |ring: &Owners, at: usize| {
        let node = ring[at];
        let same = near(ring, at, n).filter(|near| *near == node).count();
        let close = near(ring, at, n).filter(|near| located && location(*near) == location(node)).count();
        same * 1000 + close
    };
    // Take the exchange that removes the most repetitions, and among equals the one that moves the least.
    loop {
        let wrongs: Vec<usize> = (0..q).map(|at| wrong(&ring, at)).collect();
        let mut best = None;
        for a in (0..q).filter(|a| wrongs[*a] > 0) {
            for b in 0..q {
                if ring[b] == ring[a] {
                    continue;
                }
                let before = wrongs[a] + wrongs[b];
                ring.swap(a, b);
                let gain = before.saturating_sub(wrong(&ring, a) + wrong(&ring, b));
                let moved = usize::from(ring[a] != owners[a]) + usize::from(ring[b] != owners[b]);
                ring.swap(a, b);
                let key = (gain, std::cmp::Reverse(moved));
                if gain > 0 && best.is_none_or(|(most, _, _)| key > most) {
                    best = Some((key, a, b));
                }
            }
        }
        match best {
            Some((_, a, b)) => ring.swap(a, b),
            None => return ring,
        }
    }
}
