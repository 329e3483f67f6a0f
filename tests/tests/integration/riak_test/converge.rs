//! riak_test `verify_cluster_converge`: all join at once, each by another member, and all come to
//! know the same even ring.

use annulus_tests::harness::{Cluster, Verb, ring};

use super::common::{names, present, settled};

#[test]
fn nodes_that_join_all_at_once_converge() {
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
