//! Fair shares: the number of partitions that each node should hold.

/// Bounds of a node's load: its fair share rounded down and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub low: i64,
    pub high: i64,
}

/// A share as an exact fraction, `over / under`.
#[derive(Clone, Copy)]
struct Share {
    over: u128,
    under: u128,
}

/// Return the bounds of each node for sets of `length` out of `partitions`. Shares are by weight, but a zone
/// counts at most `zone_limit` times in a set and a node at most once. A share that a node or zone cannot
/// take is divided among all others, whatever their zones.
pub(super) fn bounds(
    weights: &[u64],
    zones: &[usize],
    zone_limit: usize,
    partitions: usize,
    length: usize,
) -> Vec<Bounds> {
    let (zone_count, q) = (zones.iter().max().map_or(0, |most| most + 1), partitions as u128);
    let mut members = vec![Vec::new(); zone_count];
    zones.iter().enumerate().for_each(|(node, zone)| members[*zone].push(node));
    let limit = q * zone_limit as u128;
    let whole = Share { over: q * length as u128, under: 1 };

    // A zone at its limit is set apart. The other nodes then get more, which may bring another zone to its
    // limit.
    let mut full = vec![false; zone_count];
    let mut shares = vec![whole; zones.len()];
    loop {
        let nodes: Vec<usize> = (0..zones.len()).filter(|node| !full[zones[*node]]).collect();
        let taken = limit * full.iter().filter(|full| **full).count() as u128;
        fill(Share { over: whole.over.saturating_sub(taken), under: 1 }, weights, &nodes, q, &mut shares);
        let over =
            |zone: &usize| !full[*zone] && exceeds(members[*zone].iter().map(|node| shares[*node]), limit);
        let more: Vec<usize> = (0..zone_count).filter(over).collect();
        if more.is_empty() {
            break;
        }
        for zone in more {
            full[zone] = true;
            fill(Share { over: limit, under: 1 }, weights, &members[zone], q, &mut shares);
        }
    }
    let round =
        |Share { over, under }| Bounds { low: (over / under) as i64, high: over.div_ceil(under) as i64 };
    shares.into_iter().map(round).collect()
}

/// Divide `whole` among `nodes` by weight. A node that would get more than `cap` gets `cap`, and the rest is
/// divided again among the others.
fn fill(whole: Share, weights: &[u64], nodes: &[usize], cap: u128, shares: &mut [Share]) {
    let mut open = nodes.to_vec();
    let mut rest = whole.over;
    loop {
        let weight: u128 = open.iter().map(|node| u128::from(weights[*node])).sum();
        let over = |node: &usize| rest * u128::from(weights[*node]) > cap * weight * whole.under;
        let (full, others): (Vec<usize>, Vec<usize>) = open.iter().partition(|node| over(node));
        for node in &others {
            shares[*node] = Share { over: rest * u128::from(weights[*node]), under: whole.under * weight };
        }
        if full.is_empty() {
            return;
        }
        full.iter().for_each(|node| shares[*node] = Share { over: cap, under: 1 });
        rest = rest.saturating_sub(cap * whole.under * full.len() as u128);
        open = others;
    }
}

/// Return true if the sum of the shares exceeds `limit`. All shares with a denominator other than 1 have the
/// same one.
fn exceeds(shares: impl Iterator<Item = Share>, limit: u128) -> bool {
    let (mut whole, mut over, mut under) = (0, 0, 1);
    for share in shares {
        if share.under == 1 {
            whole += share.over;
        } else {
            (over, under) = (over + share.over, share.under);
        }
    }
    whole * under + over > limit * under
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(weights: &[u64], zones: &[usize], limit: usize, length: usize) -> Vec<(i64, i64)> {
        bounds(weights, zones, limit, 64, length).into_iter().map(|b| (b.low, b.high)).collect()
    }

    #[test]
    fn equal_weights_share_equally_and_heavy_nodes_get_more_up_to_every_set() {
        assert_eq!(rounded(&[1, 1, 1], &[0, 1, 2], 1, 1), [(21, 22); 3]);
        assert_eq!(rounded(&[2, 1, 1], &[0, 1, 2], 1, 1), [(32, 32), (16, 16), (16, 16)]);
        assert_eq!(rounded(&[100, 1, 1], &[0, 1, 2], 1, 2), [(64, 64), (32, 32), (32, 32)]);
    }

    #[test]
    fn the_nodes_of_a_large_zone_share_the_limit_of_one_zone() {
        assert_eq!(
            rounded(&[1; 6], &[0, 1, 2, 2, 2, 2], 1, 3),
            [(64, 64), (64, 64), (16, 16), (16, 16), (16, 16), (16, 16)]
        );
    }

    #[test]
    fn the_excess_of_a_heavy_node_goes_to_all_others_not_only_to_its_zone() {
        assert_eq!(
            rounded(&[100, 1, 1, 1, 1], &[0, 0, 1, 1, 1], 2, 3),
            [(64, 64), (32, 32), (32, 32), (32, 32), (32, 32)]
        );
    }
}
