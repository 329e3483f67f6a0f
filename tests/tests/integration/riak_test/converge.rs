//! riak_test `verify_cluster_converge`: all nodes join at the same time, and all learn the same balanced ring.

use annulus_tests::harness::{Cluster, Verb, ring};

use super::common::{names, present, settled};

#[test]
fn nodes_that_join_at_the_same_time_converge() {
    let cluster = Cluster::apart(4);
    let verbs: Vec<Verb> = (1..4).map(|node| cluster[node].begin_join(&cluster[0])).collect();
    settled(&cluster, &[0, 1, 2, 3]);
    drop(verbs);
    let first = ring(&cluster[0]);
    for node in 1..4 {
        assert_eq!(ring(&cluster[node]), first);
        assert_eq!(present(&cluster[node]), names(&cluster, &[0, 1, 2, 3]));
    }
}
