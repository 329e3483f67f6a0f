//! Fair shares: how many partitions each node should hold.

/// The fewest and the most that a node should hold: its fair share rounded down and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub low: i64,
    pub high: i64,
}

/// A share as an exact fraction.
#[derive(Clone, Copy)]
struct Share {
    over: u128,
    under: u128,
}

/// Bounds of each node for sets of `length` out of `partitions`: by weight, but no zone more
/// than `zone_limit` in every set and no node more than once in every set; what they cannot
/// take, the others share.
pub(super) fn bounds(
    weights: &[u64],
    zones: &[usize],
    zone_limit: usize,
    partitions: usize,
    length: usize,
) -> Vec<Bounds> {
    let zone_count = zones.iter().max().map_or(0, |most| most + 1);
    let mut zone_weights = vec![0u64; zone_count];
    let mut zone_caps = vec![0u128; zone_count];
    for (zone, weight) in zones.iter().zip(weights) {
        zone_weights[*zone] += weight;
        zone_caps[*zone] = (zone_caps[*zone] + partitions as u128).min((partitions * zone_limit) as u128);
    }
    let whole = Share { over: (partitions * length) as u128, under: 1 };
    let of_zones = fill(whole, &zone_weights, &zone_caps);
    let mut bounds = vec![Bounds { low: 0, high: 0 }; weights.len()];
    for (zone, share) in of_zones.into_iter().enumerate() {
        let nodes: Vec<usize> = (0..zones.len()).filter(|node| zones[*node] == zone).collect();
        let weights: Vec<u64> = nodes.iter().map(|node| weights[*node]).collect();
        let of_nodes = fill(share, &weights, &vec![partitions as u128; nodes.len()]);
        for (node, Share { over, under }) in nodes.into_iter().zip(of_nodes) {
            bounds[node] = Bounds { low: (over / under) as i64, high: over.div_ceil(under) as i64 };
        }
    }
    bounds
}

/// Divides `whole` by weight; who would get more than its cap gets the cap, and the rest is
/// divided again among the others.
fn fill(whole: Share, weights: &[u64], caps: &[u128]) -> Vec<Share> {
    let mut capped = vec![false; weights.len()];
    loop {
        let (mut taken, mut weight) = (0u128, 0u128);
        for at in 0..weights.len() {
            if capped[at] {
                taken += caps[at];
            } else {
                weight += u128::from(weights[at]);
            }
        }
        let rest = whole.over.saturating_sub(taken * whole.under);
        let share = |at: usize| match capped[at] {
            true => Share { over: caps[at], under: 1 },
            false => Share { over: rest * u128::from(weights[at]), under: whole.under * weight },
        };
        let too_much = |at: &usize| {
            let share = share(*at);
            !capped[*at] && share.over > caps[*at] * share.under
        };
        let more: Vec<usize> = (0..weights.len()).filter(too_much).collect();
        if more.is_empty() {
            return (0..weights.len()).map(share).collect();
        }
        more.into_iter().for_each(|at| capped[at] = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(weights: &[u64], zones: &[usize], limit: usize, length: usize) -> Vec<(i64, i64)> {
        bounds(weights, zones, limit, 64, length).into_iter().map(|b| (b.low, b.high)).collect()
    }

    #[test]
    fn equal_weights_share_equally_and_heavy_ones_take_more_up_to_every_set() {
        assert_eq!(rounded(&[1, 1, 1], &[0, 1, 2], 1, 1), [(21, 22); 3]);
        assert_eq!(rounded(&[2, 1, 1], &[0, 1, 2], 1, 1), [(32, 32), (16, 16), (16, 16)]);
        assert_eq!(rounded(&[100, 1, 1], &[0, 1, 2], 1, 2), [(64, 64), (32, 32), (32, 32)]);
    }

    #[test]
    fn a_zone_of_many_nodes_shares_what_one_zone_may_take() {
        assert_eq!(
            rounded(&[1; 6], &[0, 1, 2, 2, 2, 2], 1, 3),
            [(64, 64), (64, 64), (16, 16), (16, 16), (16, 16), (16, 16)]
        );
    }
}
