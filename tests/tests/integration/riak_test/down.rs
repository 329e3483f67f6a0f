//! riak_test `verify_down`: a dead node that is marked down holds up no join; when it starts again it
//! is a member by itself.

use annulus_tests::harness::{Cluster, owned_by, until};

use super::common::{done, members, refused, settled, token};

#[test]
fn a_node_that_is_down_holds_up_no_join_and_comes_back_by_itself() {
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

    // It keeps what it has: nobody else could give that away. The others share theirs with the
    // one that joins, and do not wait.
    done(&cluster[3].json(&["join", &cluster[0].listen, "--token", &token(&cluster[1]), "--no-wait"]));
    let new = cluster[3].name.clone();
    until("who joins has its share of what is up", || {
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
