//! Messages of senders that are not members, or that speak for another node.

use annulus_core::codec::encode;
use annulus_core::state::{Change, Lineage};
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};

use super::service::Unanswered;
use super::*;

/// Return the requests of Raft in the name of a node, in a term that every node would follow.
fn raft_messages(node: u64) -> [(u8, Vec<u8>); 3] {
    let vote = openraft::Vote::new_committed(1 << 40, node);
    let append: AppendEntriesRequest<raft::RaftTypes> =
        AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    let ballot = VoteRequest { vote: openraft::Vote::new(1 << 40, node), last_log_id: None };
    let snapshot: InstallSnapshotRequest<raft::RaftTypes> =
        InstallSnapshotRequest { vote, meta: Default::default(), offset: 0, data: Vec::new(), done: true };
    [
        (kind::RAFT_APPEND, encode(&append).unwrap()),
        (kind::RAFT_VOTE, encode(&ballot).unwrap()),
        (kind::RAFT_SNAPSHOT, encode(&snapshot).unwrap()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raft_message_in_the_name_of_another_node_is_refused() {
    let mut world = World::of_three().await;
    world.join(4).await;
    let (leader, others) = world.led().await;
    let (asked, sender) = (&others[0], &others[1]);
    let removed =
        world.nodes.iter().find(|node| ![leader.me(), asked.me(), sender.me()].contains(&node.me()));
    let removed = removed.unwrap().clone();
    leader.change(Change::Remove { node: removed.me() }, soon()).await.unwrap();
    see(asked, |view| !view.has(removed.uid())).await;
    let stranger = NodeUid([99; 16]);
    let newest = asked.view().index();
    let of_term = |node: &Cluster| node.inner.group.raft().metrics().borrow().current_term;
    let term = of_term(asked);
    for (from, names) in [
        (sender.uid(), leader.me().0),
        (sender.uid(), asked.me().0),
        (sender.uid(), newest + 9),
        (removed.uid(), removed.me().0),
        (stranger, leader.me().0),
        (stranger, removed.me().0),
        (stranger, newest),
        // It could be a leader that was admitted later, if this node had none.
        (stranger, newest + 9),
    ] {
        for (kind, payload) in raft_messages(names) {
            let refused = asked.answer(from, kind, &payload, soon()).await;
            let refusal = matches!(refused, Err(Unanswered::Impostor(_) | Unanswered::Removed));
            assert!(refusal, "{from} as {names}, kind {kind}: {refused:?}");
        }
    }
    assert_eq!(of_term(asked), term, "nobody has followed the impostor");
    leader.propose(token(50), soon()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_a_member_gets_no_answer_and_leaves_no_trace() {
    let mut world = World::of_three().await;
    world.join(4).await;
    let (leader, others) = world.led().await;
    let removed = others.last().unwrap().clone();
    leader.change(Change::Remove { node: removed.me() }, soon()).await.unwrap();
    let asked = &others[0];
    see(asked, |view| !view.has(removed.uid())).await;
    let before = asked.view();
    let propose = encode(&Command::ClearStaged).unwrap();
    let fetch = encode(&messages::FetchState { newer_than: 0 }).unwrap();
    let start = encode(&Start { number: u64::MAX, id: 1 }).unwrap();
    let lineage = Lineage { number: 1, id: 1 };
    for from in [removed.uid(), NodeUid([99; 16])] {
        for (kind, payload) in [(kind::PROPOSE, &propose), (kind::FETCH_STATE, &fetch)] {
            let refused = asked.answer(from, kind, payload, soon()).await;
            assert!(matches!(refused, Err(Unanswered::Removed | Unanswered::Unknown)), "{refused:?}");
        }
        // The number of a start would otherwise be held against the node at each later start.
        let _ = asked.answer(from, kind::STARTS, &start, soon()).await;
        assert_eq!(asked.why_outdated(from, Start { number: 1, id: 1 }), None);
        asked.on_newer_lineage(from, lineage);
    }
    // A member that names a lineage and is not in it.
    asked.on_newer_lineage(leader.uid(), lineage);
    asked.on_newer_lineage(leader.uid(), Lineage { number: u64::MAX, id: 1 });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = asked.view();
    assert!(after.serves() && !after.superseded && after.outside.is_none());
    assert_eq!(after.state.lineage, before.state.lineage);
    leader.propose(token(50), soon()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_proposes_neither_for_others_nor_what_the_leader_decides() {
    let world = World::of_three().await;
    let (leader, others) = world.led().await;
    let (sender, other) = (&others[0], &others[1]);
    let moved = |node: &Cluster| Command::Moved {
        node: node.me(),
        listen: "127.0.0.1:9".into(),
        http: String::new(),
    };
    let raise = Command::Raise { level: 99, known: Vec::new() };
    for command in [moved(other), moved(&leader), raise] {
        let refused = sender.propose(command, soon()).await.unwrap_err();
        assert!(refused.to_string().contains("may not propose this"), "{refused}");
    }
    sender.propose(moved(sender), soon()).await.unwrap();
}
