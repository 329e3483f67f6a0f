//! The event stream of a transport: its order, and its limits.

use super::super::limits::MAX_EVENTS;
use super::*;
use tokio::task::JoinSet;

/// Start a transport whose events the test polls, without a service.
fn bare(world: &World) -> (Transport, Inbound, PeerAddr) {
    let config = world.config(uid());
    let service: Weak<dyn Service> = Weak::<Recorder>::new();
    let net = world.net(config.listen.ip());
    let (transport, inbound) = Transport::bind_on(&net, Speaks::THIS, config.clone(), service).unwrap();
    let addr = PeerAddr { uid: config.uid, addr: transport.local_addr() };
    (transport, inbound, addr)
}

async fn requests_to_a_node_that_is_gone_are_refused_and_not_executed(world: World) {
    let asker = world.node();
    let (_transport, inbound, addr) = bare(&world);
    assert_eq!(asker.call(&addr, REVERSE, b"abc").await, Err(CallError::Overloaded));
    drop(inbound);
    let asked = asker.transport.call(&addr, Lane::Control, REVERSE, Bytes::new(), soon()).await;
    assert_eq!(asked, Err(CallError::Overloaded));
    let mut stream = asker.transport.open_bulk(&addr, 40, Bytes::new(), soon()).await.unwrap();
    assert_eq!(within("the end of the stream", stream.recv.frame()).await, Err(BulkError::GivenUp));
}

async fn events_that_are_not_polled_refuse_control_requests_and_lose_no_connection(world: World) {
    let asker = world.node();
    let (transport, mut inbound, addr) = bare(&world);
    let mut calls = JoinSet::new();
    for _ in 0..MAX_EVENTS + 10 {
        let (asks, addr) = (asker.transport.clone(), addr.clone());
        calls.spawn(async move { asks.call(&addr, Lane::Control, HOLD, Bytes::new(), soon()).await });
    }
    // The connection takes a slot too if it comes before the last request.
    for _ in 0..10 {
        let refused = within("a refusal", calls.join_next()).await.unwrap().unwrap();
        assert_eq!(refused, Err(CallError::Overloaded));
    }
    let polled = async {
        let mut connected = false;
        while let Some(event) = inbound.next().await {
            // Dropping a request's responder ends its call.
            connected |= matches!(event, Event::Connected(peer) if peer == asker.uid());
        }
        connected
    };
    let ended = async {
        let mut refused = 0;
        while let Some(ended) = calls.join_next().await {
            match ended.unwrap() {
                Err(CallError::NoAnswer) => {}
                Err(CallError::Overloaded) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        asker.transport.close().await;
        transport.close().await;
        drop(transport);
        refused
    };
    let (connected, refused) = within("the end of all calls", async { tokio::join!(polled, ended) }).await;
    assert!(connected && refused <= 1, "connected: {connected}, {refused} more refused");
}

on_both_nets! {
    requests_to_a_node_that_is_gone_are_refused_and_not_executed,
    events_that_are_not_polled_refuse_control_requests_and_lose_no_connection,
}
