//! riak_test `verify_claimant`: another node becomes the claimant, here without an operator, and stays it when
//! the old one returns.

use annulus_tests::harness::{Cluster, until};

use super::common::{claimant, settled};

#[test]
fn a_new_claimant_stays_claimant_when_the_old_one_returns() {
    let mut cluster = Cluster::apart(4);
    for node in [1, 2] {
        cluster[node].join(&cluster[0]);
    }
    let old = claimant(&cluster, 0).unwrap();
    let others: Vec<usize> = (0..3).filter(|node| *node != old).collect();
    cluster[old].kill();
    let new = until("another claimant", || {
        let [one, two] = [claimant(&cluster, others[0]), claimant(&cluster, others[1])];
        one.filter(|one| two == Some(*one) && *one != old)
    });
    // The new claimant acts: a node joins while the old claimant is down.
    let verb = cluster[3].begin_join(&cluster[new]);
    let joined = cluster[3].name.clone();
    until("a node joins while the old claimant is down", || {
        let share = annulus_tests::harness::owned_by(&cluster[new], &joined).len();
        (share > 0).then_some(())
    });

    cluster[old].start();
    settled(&cluster, &[0, 1, 2, 3]);
    drop(verb);
    for asked in 0..4 {
        assert_eq!(claimant(&cluster, asked), Some(new), "asked node {asked}; node {old} is back");
    }
}
