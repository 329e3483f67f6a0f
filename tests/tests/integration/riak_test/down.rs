//! riak_test `verify_down`: a dead node that is marked down does not delay a join. After its restart it
//! becomes a member again without an operator.

use annulus_tests::harness::{Cluster, owned_by, until};

use super::common::{done, members, refused, settled, token};

#[test]
fn a_down_node_delays_no_join_and_comes_back_by_itself() {
    let mut cluster = Cluster::apart(4);
    for node in [1, 2] {
        cluster[node].join(&cluster[0]);
    }
    let away = cluster[2].name.clone();
    refused(&cluster[0].json(&["down", &away]), "is up");
    refused(&cluster[0].json(&["down", "nobody@127.0.0.1"]), "nobody@127.0.0.1");
    cluster[2].kill();
    until("its death is known", || {
        let ran = cluster[0].json(&["down", &away]);
        (ran.code == 0).then_some(())
    });
    assert_eq!(members(&cluster[1])[&away], "down");

    // The down node keeps its partitions, because only it could hand them over. The other nodes give theirs to
    // the joining node without waiting.
    done(&cluster[3].json(&["join", &cluster[0].listen, "--token", &token(&cluster[1]), "--no-wait"]));
    let new = cluster[3].name.clone();
    until("the joining node has its share of the live nodes' partitions", || {
        let ring = annulus_tests::harness::ring(&cluster[1]);
        let waits = |(owner, pending): &(String, Option<String>)| pending.is_some() && *owner != away;
        (!ring.iter().any(waits) && !owned_by(&cluster[1], &new).is_empty()).then_some(())
    });
    assert_eq!(members(&cluster[3])[&new], "member");
    assert_eq!(members(&cluster[3])[&away], "down");

    cluster[2].start();
    until("it is a member again", || {
        (0..4).all(|node| members(&cluster[node])[&away] == "member").then_some(())
    });
    settled(&cluster, &[0, 1, 2, 3]);
}
