//! riak_test `verify_build_cluster_caps_race`: a join said to a node that is only just starting, or
//! of one that is, ends clearly, and never half.

use std::thread;

use annulus_tests::harness::{Cluster, Node, Ran, until};

use super::common::{names, present, settled, token};

/// It was done, or nothing of it was; never a maybe, never silence.
fn is_clear(ran: &Ran) -> bool {
    match ran.code {
        0 => return true,
        // There is nobody to say it to yet: nothing was sent.
        3 => {}
        1 => assert_eq!(ran.json()["error"]["state"], "not-applied", "{ran:?}"),
        _ => panic!("{ran:?}"),
    }
    false
}

fn join(joining: &Node, listen: &str, token: &str) -> Ran {
    joining.json(&["join", listen, "--token", token, "--no-wait", "--timeout", "20s"])
}

/// A node whose process starts while it is asked things, on a thread of its own.
fn starting(mut node: Node) -> thread::JoinHandle<Node> {
    thread::spawn(move || {
        node.start();
        node
    })
}

#[test]
fn a_join_said_to_a_node_that_starts_is_refused_or_done() {
    let cluster = Cluster::apart(1);
    let token = token(&cluster[0]);
    let newcomer = Node::new("late@127.0.0.1", cluster.path(), &[]);
    // The same to whoever asks it: a directory.
    let asked = Node::new("late@127.0.0.1", cluster.path(), &[]);
    let mut refused = u32::from(!is_clear(&join(&asked, &cluster[0].listen, &token)));
    let coming = starting(newcomer);
    until("it has joined", || {
        let clear = is_clear(&join(&asked, &cluster[0].listen, &token));
        refused += u32::from(!clear);
        clear.then_some(())
    });
    let newcomer = coming.join().unwrap();
    assert!(refused > 0, "it was never asked too early");
    until("it is a member", || (present(&cluster[0]).contains(&newcomer.name)).then_some(()));
}

#[test]
fn a_join_to_a_member_that_starts_leaves_the_joiner_what_it_is_or_joins_it() {
    let mut cluster = Cluster::apart(2);
    let (token, listen) = (token(&cluster[0]), cluster[0].listen.clone());
    let before = cluster[1].json(&["status"]).json()["cluster"].clone();
    cluster[0].kill();
    let early = join(&cluster[1], &listen, &token);
    assert!(!is_clear(&early), "{early:?}");
    let after = cluster[1].json(&["status"]).json();
    assert_eq!((&after["cluster"], &after["quorum"]), (&before, &true.into()), "it is what it was");

    // Said again and again while the member comes up; each time the answer is clear.
    thread::scope(|scope| {
        let [first, second] = cluster.nodes_mut() else { panic!("two nodes") };
        let up = scope.spawn(|| first.start());
        until("the join is accepted", || is_clear(&join(second, &listen, &token)).then_some(()));
        up.join().unwrap();
    });
    settled(&cluster, &[0, 1]);
    assert_eq!(present(&cluster[1]), names(&cluster, &[0, 1]));
}
