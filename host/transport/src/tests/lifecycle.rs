//! Connections that are established, lost, duplicated and replaced.

use super::*;

/// A node on a separate runtime, so that it can vanish like a killed process: its tasks stop, and its socket
/// closes without a close packet.
struct Doomed {
    ground: Ground,
    runtime: Option<tokio::runtime::Runtime>,
    node: Node,
}

impl Doomed {
    fn start(world: &World, config: TransportConfig) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let node = world.start(config);
        Self { ground: world.ground.clone(), node, runtime: Some(runtime) }
    }

    fn kill(mut self) -> TransportConfig {
        if let Ground::Memory(network, _) = &self.ground {
            network.kill(self.node.config.listen.ip());
        }
        self.runtime.take().unwrap().shutdown_background();
        self.node.config.clone()
    }
}

async fn killed_while_a_call_waits(a: &Node, b: Doomed) -> (TransportConfig, CallError, Duration) {
    let to = b.node.addr();
    let (transport, peer) = (a.transport.clone(), to.clone());
    let call =
        tokio::spawn(async move { transport.call(&peer, Lane::Data, HOLD, Bytes::new(), soon()).await });
    let held = b.node.held().await;
    let killed = Instant::now();
    let config = b.kill();
    let error = within("the call's end", call).await.unwrap().unwrap_err();
    let took = killed.elapsed();
    drop(held);
    (config, error, took)
}

async fn a_killed_peer_ends_its_calls_as_lost_within_a_second_then_is_unreachable_then_comes_back(
    world: World,
) {
    let a = world.node();
    let (config, error, took) =
        killed_while_a_call_waits(&a, Doomed::start(&world, world.config(uid()))).await;
    assert!(matches!(error, CallError::Lost(_)), "{error}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let peer = PeerAddr { uid: config.uid, addr: config.listen };
    assert!(!a.transport.is_up(peer.uid));
    let asked = Instant::now();
    let error = a.call(&peer, REVERSE, b"").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    assert!(asked.elapsed() < Duration::from_millis(300), "refused at once: {:?}", asked.elapsed());
    // The node restarts under the same address, and a's background dial finds it.
    world.free(config.listen).await;
    let again = world.start(TransportConfig { boot: BootId(rand::random()), ..config });
    a.call_until_answered(&again.addr()).await;
    assert!(a.transport.is_up(peer.uid));
    again.call(&a.addr(), ECHO, b"").await.unwrap();
}

async fn another_node_at_the_address_of_a_killed_one_does_not_keep_its_link_up(world: World) {
    let a = world.node();
    let b = Doomed::start(&world, world.config(uid()));
    let (old, transport) = (b.node.addr(), a.transport.clone());
    let call =
        tokio::spawn(async move { transport.call(&old, Lane::Data, HOLD, Bytes::new(), soon()).await });
    let held = b.node.held().await;
    let config = b.kill();
    world.free(config.listen).await;
    let other = world.start(TransportConfig { listen: config.listen, ..world.config(uid()) });
    let begun = Instant::now();
    let error = within("the call's end", async {
        while !call.is_finished() {
            other.call(&a.addr(), ECHO, b"").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        call.await.unwrap().unwrap_err()
    })
    .await;
    assert!(matches!(error, CallError::Lost(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(held);
}

async fn a_peer_that_closes_ends_calls_at_once(world: World) {
    let (a, b) = (world.node(), world.node());
    let to = b.addr();
    let close = async {
        let held = b.held().await;
        let closing = Instant::now();
        b.transport.close().await;
        drop(held);
        closing
    };
    let (call, closing) = tokio::join!(a.call(&to, HOLD, b""), close);
    assert!(matches!(&call, Err(CallError::Lost(why)) if why.contains("stopped")), "{call:?}");
    assert!(closing.elapsed() < Duration::from_millis(700), "{:?}", closing.elapsed());
    let error = b.call(&a.addr(), ECHO, b"").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
}

async fn the_first_call_to_a_peer_that_is_not_there_waits_for_the_dial_and_no_longer(world: World) {
    let a = world.node();
    // The address is bound, and nothing responds there.
    let silent = world.silent();
    let peer = PeerAddr { uid: uid(), addr: silent.addr };
    let begun = Instant::now();
    let early =
        a.transport.call(&peer, Lane::Data, ECHO, Bytes::new(), begun + Duration::from_millis(100)).await;
    assert_eq!(early, Err(CallError::Deadline { sent: false }));
    let error = a.call(&peer, ECHO, b"").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

async fn a_peer_reported_to_be_back_is_dialled_again_and_a_call_waits_for_that(world: World) {
    let a = world.node();
    let silent = world.silent();
    let peer = PeerAddr { uid: uid(), addr: silent.addr };
    assert!(matches!(a.call(&peer, ECHO, b"").await, Err(CallError::Unreachable(_))));
    // A dial is in progress or about to start, and nothing listens at its address.
    let refused = Instant::now();
    assert!(matches!(a.call(&peer, ECHO, b"").await, Err(CallError::Unreachable(_))));
    assert!(refused.elapsed() < Duration::from_millis(500), "no call waits for it");
    drop(silent);
    let _b = world.start(TransportConfig { listen: peer.addr, ..world.config(peer.uid) });
    a.transport.hurry(peer.uid);
    assert_eq!(a.call(&peer, ECHO, b"there?").await, Ok(Bytes::from_static(b"there?")));
    // This has no effect on a connected peer.
    a.transport.hurry(peer.uid);
    assert_eq!(a.call(&peer, ECHO, b"there?").await, Ok(Bytes::from_static(b"there?")));
}

async fn dialling_each_other_at_once_loses_no_call_and_leaves_one_connection(world: World) {
    let (a, b) = (world.node(), world.node());
    let calls = (0..100u8).map(|index| {
        let (from, to) = if index % 2 == 0 { (&a, b.addr()) } else { (&b, a.addr()) };
        let transport = from.transport.clone();
        tokio::spawn(async move {
            transport.call(&to, Lane::Data, REVERSE, Bytes::from(vec![index]), soon()).await
        })
    });
    for (index, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(within("a call", call).await.unwrap(), Ok(Bytes::from(vec![index as u8])));
    }
    within("one connection to be left", async {
        loop {
            a.call(&b.addr(), ECHO, b"").await.unwrap();
            b.call(&a.addr(), ECHO, b"").await.unwrap();
            let count = |node: &Node, peer| node.transport.shared.peer(peer).links().len();
            if (count(&a, b.uid()), count(&b, a.uid())) == (1, 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Return the settings of another process of a node, as if its data directory had been copied and started
/// elsewhere.
fn another_run(of: &Node, listen: SocketAddr) -> TransportConfig {
    TransportConfig {
        boot: BootId(rand::random()),
        start: Start { number: of.config.start.number + 1, id: rand::random() },
        listen,
        ..of.config.clone()
    }
}

async fn a_second_run_of_a_node_is_turned_away_while_the_first_answers(world: World) {
    let a = world.node();
    let mut first = world.node();
    first.call(&a.addr(), ECHO, b"").await.unwrap();
    let mut second = world.start(another_run(&first, world.listen()));
    let error = second.call(&a.addr(), ECHO, b"").await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("runs as this node")), "{error}");
    let told = within("the second run to be told", second.twins.recv()).await.unwrap();
    assert!(told.contains(&first.config.listen.to_string()), "{told}");
    within("the first run's link", async {
        while a.transport.peer_info(first.uid()).map(|(_, boot)| boot) != Some(first.config.boot) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    first.call(&a.addr(), ECHO, b"").await.unwrap();
    assert!(first.superseded.try_recv().is_err() && first.twins.try_recv().is_err());
    // The result is the same if the other side dials.
    let error = a.call(&second.addr(), ECHO, b"").await;
    assert!(error.is_ok(), "the first run's connection is used: {error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_does_not_answer_is_replaced_and_may_come_back_unless_its_disk_is_older() {
    let world = World::new();
    let a = world.node();
    // The process is stalled: its socket exists, and nothing reads it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (config, (hold, held)) = (world.config(uid()), std::sync::mpsc::channel::<()>());
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let to = a.addr();
    let (asked, answer) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        runtime.block_on(async move {
            let mut first = Node::start(&Net::Udp, config);
            first.call(&to, ECHO, b"").await.unwrap();
            ready.send(another_run(&first, LOOPBACK)).unwrap();
            held.recv().unwrap();
            let superseded = within("the end", first.superseded.recv());
            let calls = async {
                while first.transport.call(&to, Lane::Data, ECHO, Bytes::new(), soon()).await.is_ok() {}
                std::future::pending::<()>().await;
            };
            let why = tokio::select! {
                why = superseded => why,
                () = calls => None,
            };
            asked.send(why).unwrap();
        });
    });
    let next = is_ready.await.unwrap();
    let second = world.start(next);
    let begun = Instant::now();
    second.call_until_answered(&a.addr()).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // A response may be sent before the link is in its entry.
    within("the second run's link", async {
        while a.transport.peer_info(second.uid()).map(|(_, boot)| boot) != Some(second.config.boot) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // From now on the second process is known to have the newest disk.
    a.service.newest.lock().replace(second.config.start);
    hold.send(()).unwrap();
    let why = within("the first run's end", answer).await.unwrap().unwrap();
    assert!(why.contains("its disk is older"), "{why}");
    second.call(&a.addr(), ECHO, b"").await.unwrap();
    thread.join().unwrap();
}

async fn meeting_an_address_connects_to_any_node_of_this_cluster_there(world: World) {
    let (a, b) = (world.node(), world.node());
    assert_eq!(a.transport.meet(b.config.listen).await, Ok(b.uid()));
    assert!(a.transport.is_up(b.uid()));
    // A second meeting keeps the existing connection.
    assert_eq!(a.transport.meet(b.config.listen).await, Ok(b.uid()));
    assert_eq!(b.transport.meet(a.config.listen).await, Ok(a.uid()));
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    let itself = a.transport.meet(a.config.listen).await.unwrap_err();
    assert!(itself.contains("itself") || itself.contains("very uid"), "{itself}");
    let other = world.another().node();
    a.transport.meet(other.config.listen).await.unwrap_err();
    let silent = world.silent();
    let error = a.transport.meet(silent.addr).await.unwrap_err();
    assert!(error.contains("no answer"), "{error}");
}

async fn a_removed_node_is_disconnected_and_refused(world: World) {
    let (a, b) = (world.node(), world.node());
    b.call(&a.addr(), ECHO, b"").await.unwrap();
    a.transport.set_banned([b.uid()].into());
    within("the removed node to be refused", async {
        while b.call(&a.addr(), ECHO, b"").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("calls to it to be refused", async {
        while !matches!(a.call(&b.addr(), ECHO, b"").await, Err(CallError::Unreachable(_))) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The close of its connection reports the removal, and each refusal reports it again.
    within("the removed node to be told", b.service.removed.notified()).await;
    while b.call(&a.addr(), ECHO, b"").await.is_ok() {}
    within("the removed node to be told again", b.service.removed.notified()).await;
    a.transport.set_banned([].into());
    b.call_until_answered(&a.addr()).await;
}

async fn a_removal_ends_nobody_of_another_lineage(world: World) {
    let (mut a, mut b) = (world.node(), world.node());
    let recovered = Lineage { number: 1, id: 7 };
    a.transport.set_banned([b.uid()].into());
    b.transport.set_lineage(recovered);
    assert!(b.call(&a.addr(), ECHO, b"").await.is_err());
    assert_eq!(within("the remover to know of its rival", a.rivals.recv()).await, Some(b.uid()));
    assert_eq!(within("the rival to know of it, too", b.rivals.recv()).await, Some(a.uid()));
    // The remover is now of a newer lineage.
    a.transport.set_lineage(recovered.next(8));
    assert!(b.call(&a.addr(), ECHO, b"").await.is_err());
    within("the removed node to be told that it is outside", b.service.outside.notified()).await;
    let ended = tokio::time::timeout(Duration::ZERO, b.service.removed.notified()).await;
    assert!(ended.is_err(), "its lineage did not remove it");
}

async fn while_nodes_stop_and_start_every_call_ends_in_time_and_all_find_each_other_again(world: World) {
    let callers = [world.node(), world.node()];
    let mut restarted = world.node();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let calls = (0..8usize).map(|index| {
        let transport = callers[index % 2].transport.clone();
        let to = if index < 4 { restarted.addr() } else { callers[(index + 1) % 2].addr() };
        let stopped = stopped.clone();
        tokio::spawn(async move {
            let (mut answered, mut errors) = (0, Vec::new());
            while !*stopped.borrow() {
                let deadline = Instant::now() + Duration::from_millis(1500);
                let result =
                    transport.call(&to, Lane::Data, MIRROR, Bytes::from(vec![1; 500]), deadline).await;
                assert!(deadline.elapsed() < Duration::from_secs(1), "a call outlived its deadline");
                match result {
                    Ok(_) => answered += 1,
                    Err(error) => {
                        errors.push(error);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            (answered, errors)
        })
    });
    let calls: Vec<_> = calls.collect();
    for round in 0..6 {
        callers[round % 2].call_until_answered(&restarted.addr()).await;
        restarted.transport.close().await;
        let config = TransportConfig { boot: BootId(rand::random()), ..restarted.config.clone() };
        world.free(config.listen).await;
        restarted = world.start(config);
        if round % 2 == 0 {
            // The new process may dial first, and may meet a dial in progress.
            restarted.call_until_answered(&callers[0].addr()).await;
        }
    }
    for (from, to) in [(0, 1), (1, 0)] {
        callers[from].call_until_answered(&callers[to].addr()).await;
        callers[from].call_until_answered(&restarted.addr()).await;
        restarted.call_until_answered(&callers[from].addr()).await;
    }
    stop.send(true).unwrap();
    for (index, call) in calls.into_iter().enumerate() {
        let (answered, errors) = within("the caller", call).await.unwrap();
        assert!(answered > 0);
        assert!(index < 4 || errors.is_empty(), "between two nodes that stayed up: {errors:?}");
    }
}

on_both_nets! {
    a_killed_peer_ends_its_calls_as_lost_within_a_second_then_is_unreachable_then_comes_back,
    another_node_at_the_address_of_a_killed_one_does_not_keep_its_link_up,
    a_peer_that_closes_ends_calls_at_once,
    the_first_call_to_a_peer_that_is_not_there_waits_for_the_dial_and_no_longer,
    a_peer_reported_to_be_back_is_dialled_again_and_a_call_waits_for_that,
    dialling_each_other_at_once_loses_no_call_and_leaves_one_connection,
    a_second_run_of_a_node_is_turned_away_while_the_first_answers,
    meeting_an_address_connects_to_any_node_of_this_cluster_there,
    a_removed_node_is_disconnected_and_refused,
    a_removal_ends_nobody_of_another_lineage,
    while_nodes_stop_and_start_every_call_ends_in_time_and_all_find_each_other_again,
}
