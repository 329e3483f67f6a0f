//! Joins that are refused, and joins that a crash interrupts.

use annulus_cluster::{Candidate, ask_to_join};
use annulus_core::ids::NodeUid;
use annulus_transport::identity::{NodeKey, key_digest};

use super::*;

#[test]
fn an_impossible_join_is_refused_with_its_reason_and_changes_nothing() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    let good = token(&first);

    let refused = |node: &Running, to: &Running, token: &str| {
        let before = node.view().state.clone();
        let error = try_join(node, to, token).err().unwrap();
        // Entries without effect may have been added in between.
        let after = node.view().state.clone();
        assert_eq!(ClusterState { applied: before.applied, ..after }, before);
        error
    };
    assert!(matches!(refused(&second, &first, "hello"), JoinError::Token(TokenError::NotAToken)));
    let mistyped = good[..good.len() - 1].to_owned();
    assert!(matches!(refused(&second, &first, &mistyped), JoinError::Token(TokenError::Mistyped)));
    assert!(matches!(refused(&first, &first, &good), JoinError::Itself(_)));
    // A token of one cluster presented to another: its authority differs.
    let foreign = dirs.start("c");
    let error = refused(&second, &foreign, &good);
    assert!(matches!(error, JoinError::Connect(ConnectError::Refused { .. })), "{error}");
    let ended = block(first.life.cluster.issue_token(Duration::from_millis(1), soon())).unwrap().to_string();
    std::thread::sleep(Duration::from_millis(5));
    assert!(matches!(refused(&second, &first, &ended), JoinError::Refused(Refusal::BadToken)));
    let namesake = Running::start(NodeConfig { data: dirs.0.path().join("other"), ..dirs.config("a") });
    assert!(matches!(refused(&namesake, &first, &good), JoinError::Refused(Refusal::NameTaken(_))));
    block(foreign.life.cluster.propose(deploy("kv"), soon())).unwrap();
    assert!(matches!(refused(&foreign, &first, &good), JoinError::HasModules(_)));

    join(&mut second, &first);
    assert!(matches!(refused(&second, &first, &good), JoinError::AlreadyMember));
    let other = token(&namesake);
    assert!(matches!(refused(&second, &namesake, &other), JoinError::InCluster(_)));
    assert_eq!(first.view().state.members.len(), 2);
    // None of these joins is repeated after a restart.
    for node in [foreign, namesake] {
        let config = node.stop();
        assert_eq!(DataDir::lock(&config.data).unwrap().join_intent().unwrap(), None);
    }
}

#[test]
fn a_join_through_a_starting_or_stopping_member_reports_that_nothing_changed() {
    let dirs = Dirs::new();
    let (first, second) = (dirs.start("a"), dirs.start("b"));
    let token = token(&first);
    // This is the state before the control plane has started and after it has stopped.
    first.life.router.refuse_all();
    let limit = Instant::now() + Duration::from_secs(1);
    let asked = block(second.life.joiner.join(first.life.address, &token, false, limit));
    let error = asked.err().unwrap();
    assert!(matches!(&error, JoinError::Unavailable(why) if why.contains("starting")), "{error}");
}

#[test]
fn a_join_continues_after_a_crash_before_the_answer() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let config = dirs.start("b").stop();
    let intent = asking(first.life.address, token(&first), false);
    DataDir::lock(&config.data).unwrap().write_join_intent(&intent).unwrap();
    let mut second = Running::start(config);
    second.new_life();
    second.see("a member", |view| view.serves() && view.state.live_members().count() == 2);
}

#[test]
fn a_join_continues_after_a_crash_behind_the_answer_and_serves_nothing_until_it_has_caught_up() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let second = dirs.start("b");
    let accepted = try_join(&second, &first, &token(&first)).unwrap();
    let node = accepted.node;
    // The process ends before the node restarts, and so does the cluster, so that nothing can help the node.
    let config = second.stop();
    drop(accepted);
    let first_config = first.stop();
    let second = Running::start(config);
    let view = second.view();
    assert_eq!((view.me, view.member(node).unwrap().status), (node, MemberStatus::Joining));
    assert!(!view.serves());
    let config = second.stop();
    // Restart the node again, this time with the cluster.
    let second = Running::start(config);
    let _first = Running::start(first_config);
    second.see("a member", |view| view.serves() && view.state.live_members().count() == 2);
}

fn asking(address: SocketAddr, token: String, discard: bool) -> JoinIntent {
    JoinIntent::Asking { address: address.to_string(), token, stage: false, discard }
}

/// Return an address at which a join waits. It is bound, and nothing responds there.
fn nobody() -> (std::net::UdpSocket, SocketAddr) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[test]
fn a_node_that_waits_to_join_accepts_nothing_that_the_join_would_wipe() {
    let dirs = Dirs::new();
    let (first, second, third) = (dirs.start("a"), dirs.start("b"), dirs.start("c"));
    let (_socket, nobody) = nobody();
    let (to_first, to_second) = (token(&first), token(&second));
    let joiner = second.life.joiner.clone();
    let deadline = Instant::now() + Duration::from_secs(4);
    let waiting = std::thread::spawn(move || block(joiner.join(nobody, &to_first, false, deadline)));
    // The join is on disk once the node no longer accepts changes.
    let until = soon();
    while !second.config.data.join("JOIN").exists() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = block(second.life.cluster.propose(deploy("kv"), soon())).unwrap_err();
    assert_eq!(refused, ProposeError::Joining(nobody));
    let refused = try_join(&third, &second, &to_second).err().unwrap();
    assert!(matches!(&refused, JoinError::Unavailable(why) if why.contains("join")), "{refused}");
    assert!(matches!(waiting.join().unwrap(), Err(JoinError::Connect(_))));
    // The join is over, and the node is unchanged.
    block(second.life.cluster.propose(deploy("kv"), soon())).unwrap();
    assert!(matches!(try_join(&second, &first, &token(&first)), Err(JoinError::HasModules(_))));
}

#[test]
fn a_resumed_join_wipes_no_module_unless_it_was_told_to() {
    for discard in [false, true] {
        let dirs = Dirs::new();
        let (first, second) = (dirs.start("a"), dirs.start("b"));
        block(second.life.cluster.propose(deploy("kv"), soon())).unwrap();
        let config = second.stop();
        let intent = asking(first.life.address, token(&first), discard);
        DataDir::lock(&config.data).unwrap().write_join_intent(&intent).unwrap();
        let mut second = Running::start(config);
        if discard {
            second.new_life();
            second.see("a member", |view| view.serves() && view.state.live_members().count() == 2);
            continue;
        }
        let until = soon();
        while second.config.data.join("JOIN").exists() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(second.view().state.modules.len(), 1);
        assert_eq!(first.view().state.members.len(), 1);
        second.stop();
    }
}

/// Read the private key of a node from its data directory.
pub(super) fn key_of(node: &Running) -> String {
    let text = std::fs::read_to_string(node.config.data.join("node.key")).unwrap();
    text[text.find("-----BEGIN").unwrap()..].to_owned()
}

/// Ask a node's cluster to admit a node with this uid and key.
pub(super) fn ask(
    to: &Running,
    token: &str,
    uid: NodeUid,
    key: NodeKey,
) -> Result<annulus_data_dir::Admitted, JoinError> {
    ask_as(&format!("{uid}@127.0.0.1"), to, token, (uid, key))
}

fn ask_as(
    name: &str,
    to: &Running,
    token: &str,
    (uid, key): (NodeUid, NodeKey),
) -> Result<annulus_data_dir::Admitted, JoinError> {
    let candidate = Candidate {
        uid,
        name: name.to_owned(),
        listen: "127.0.0.1:1".parse().unwrap(),
        http: String::new(),
        zone: None,
        weight: 1,
        ring_size: None,
        staged: true,
        speaks: Speaks::THIS,
        key,
    };
    let token = token.parse().unwrap();
    let asked = ask_to_join(&annulus_transport::Net::Udp, to.life.address, &token, &candidate, soon());
    block(asked).map(|(admitted, _)| admitted)
}

#[test]
fn a_used_token_admits_no_second_node_and_answers_the_first_one_again() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let token = token(&first);
    let key = NodeKey::generate().unwrap();
    let same = || NodeKey::from_pem(&key.key_pem).unwrap();
    let uid = NodeUid([7; 16]);
    let admitted = ask(&first, &token, uid, same()).unwrap();
    let again = ask(&first, &token, uid, same()).unwrap();
    assert_eq!(again.node, admitted.node);
    let state = &first.view().state.clone();
    assert_eq!(state.member(admitted.node).unwrap().key, Some(key_digest(&key.public_key)));

    let second = NodeKey::generate().unwrap();
    let before = first.view().index();
    let refused = ask(&first, &token, NodeUid([8; 16]), second).err().unwrap();
    assert!(matches!(refused, JoinError::Refused(Refusal::BadToken)), "{refused}");
    assert_eq!(first.view().index(), before, "a used token adds no entry to the log");
    // A token for two nodes admits two.
    let two = block(first.life.cluster.issue_counted_token(LIMIT, Some(2), soon())).unwrap();
    assert_eq!(two.uses, Some(2));
    let mut ids = [9, 10, 11].map(|uid| {
        ask(&first, &two.token.to_string(), NodeUid([uid; 16]), NodeKey::generate().unwrap()).is_ok()
    });
    ids.sort_unstable();
    assert_eq!(ids, [false, true, true]);
    let longest = Duration::from_secs(24 * 3600 + 1);
    let refused = block(first.life.cluster.issue_counted_token(longest, None, soon())).unwrap_err();
    assert!(refused.to_string().contains("24 hours"), "{refused}");
}

#[test]
fn the_uid_of_a_live_member_is_refused_with_another_key_and_the_member_lives_on() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    join(&mut second, &first);
    let uid = second.life.cluster.uid();
    let before = first.view().state.members.clone();
    let own = key_of(&second);
    for key in [NodeKey::generate().unwrap(), NodeKey::from_pem(&own).unwrap()] {
        let refused = ask(&first, &token(&first), uid, key).err().unwrap();
        let JoinError::Refused(Refusal::BadSetting(why)) = &refused else { panic!("{refused}") };
        assert!(why.contains("b@127.0.0.1 (member)"), "{why}");
    }
    // The founder's uid is a member's, too.
    let founder = first.life.cluster.uid();
    let refused = ask(&first, &token(&first), founder, NodeKey::generate().unwrap()).err().unwrap();
    assert!(matches!(refused, JoinError::Itself(_)), "{refused}");
    let refused = ask(&second, &token(&second), founder, NodeKey::generate().unwrap()).err().unwrap();
    assert!(refused.to_string().contains("a@127.0.0.1 (member)"), "{refused}");
    assert_eq!(first.view().state.members, before);
    block(second.life.cluster.propose(deploy("kv"), soon())).unwrap();
}

#[test]
fn a_node_whose_join_was_not_answered_continues_with_another_token() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    let key = NodeKey::from_pem(&key_of(&second)).unwrap();
    let uid = second.life.cluster.uid();
    let admitted = ask_as("b@127.0.0.1", &first, &token(&first), (uid, key)).unwrap();
    drop(try_join(&second, &first, &token(&first)).unwrap());
    second.new_life();
    assert_eq!(second.life.cluster.me(), admitted.node);
}
