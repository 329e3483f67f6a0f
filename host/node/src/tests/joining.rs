//! Joins that are refused, and joins that a crash interrupts.

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
