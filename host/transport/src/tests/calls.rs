//! Requests and responses between two healthy nodes.

use super::*;

async fn an_answer_comes_back_over_either_lane_and_in_both_directions_of_one_connection(world: World) {
    let (a, b) = (world.node(), world.node());
    assert_eq!(a.call(&b.addr(), REVERSE, b"abc").await.unwrap(), "cba");
    let control =
        a.transport.call(&b.addr(), Lane::Control, REVERSE, Bytes::from_static(b"xy"), soon()).await;
    assert_eq!(control.unwrap(), "yx");
    // b never dials. The address has no listener, which proves that b uses a's connection.
    let a_elsewhere = PeerAddr { uid: a.uid(), addr: "127.0.0.1:1".parse().unwrap() };
    assert_eq!(b.call(&a_elsewhere, REVERSE, b"back").await.unwrap(), "kcab");
    assert!(a.transport.is_up(b.uid()) && b.transport.is_up(a.uid()));
    let seen = b.service.requests.lock().clone();
    let from = PeerIdentity::Node { uid: a.uid(), boot: a.config.boot };
    assert_eq!(seen, [(from.clone(), Lane::Data, REVERSE), (from, Lane::Control, REVERSE)]);
}

async fn echo_is_answered_by_the_transport_and_the_service_never_sees_it(world: World) {
    let (a, b) = (world.node(), world.node());
    assert_eq!(a.call(&b.addr(), ECHO, b"hello").await.unwrap(), "hello");
    assert_eq!(a.call(&a.addr(), ECHO, b"self").await.unwrap(), "self");
    assert!(b.service.requests.lock().is_empty());
}

async fn a_thousand_concurrent_calls_of_all_sizes_get_each_its_own_answer(world: World) {
    let (a, b) = (world.node(), world.node());
    let calls = (0..1000usize).map(|index| {
        let (transport, to) = (a.transport.clone(), b.addr());
        // The payload is filled and compared in bulk, because a test that computes delays the connection
        // under test.
        let mut payload = vec![index as u8; index * index % 50_021];
        payload.extend_from_slice(&index.to_be_bytes());
        let payload = Bytes::from(payload);
        tokio::spawn(async move {
            let answer = transport.call(&to, Lane::Data, MIRROR, payload.clone(), soon()).await;
            assert_eq!(answer.map(|answer| answer == payload), Ok(true));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        within("a concurrent call", call).await.unwrap();
    }
}

async fn answers_come_in_any_order_and_one_that_waits_holds_up_nobody(world: World) {
    let (a, b) = (world.node(), world.node());
    let to = b.addr();
    let (first, second) = (a.call(&to, HOLD, b""), a.call(&to, HOLD, b""));
    tokio::pin!(first, second);
    let hold = async {
        let one = b.held().await;
        let two = b.held().await;
        assert_eq!(a.call(&b.addr(), REVERSE, b"quick").await.unwrap(), "kciuq");
        two.send(Bytes::from_static(b"two"));
        one.send(Bytes::from_static(b"one"));
    };
    let (first, second, ()) = tokio::join!(first, second, hold);
    let mut answers = [first.unwrap(), second.unwrap()];
    answers.sort();
    assert_eq!(answers, ["one", "two"]);
}

async fn a_responder_dropped_ends_the_call_at_once_with_no_answer(world: World) {
    let (a, b) = (world.node(), world.node());
    for to in [b.addr(), a.addr()] {
        assert_eq!(a.call(&to, DROP, b"").await, Err(CallError::NoAnswer));
    }
}

async fn a_deadline_ends_the_call_and_says_whether_it_was_sent(world: World) {
    let (a, b) = (world.node(), world.node());
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    let to = b.addr();
    let hold = |deadline| a.transport.call(&to, Lane::Data, HOLD, Bytes::new(), deadline);
    let begun = Instant::now();
    let (past, soon) = tokio::join!(hold(begun), hold(begun + Duration::from_millis(50)));
    assert_eq!(past, Err(CallError::Deadline { sent: false }));
    assert_eq!(soon, Err(CallError::Deadline { sent: true }));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

async fn the_largest_frame_passes_both_ways_and_a_larger_one_is_refused_unsent(world: World) {
    let (a, b) = (world.node(), world.node());
    let largest = vec![7; limits::MAX_FRAME];
    assert_eq!(a.call(&b.addr(), MIRROR, &largest).await.unwrap(), largest);
    let bytes = limits::MAX_FRAME + 1;
    let refused = a.call(&b.addr(), MIRROR, &vec![7; bytes]).await;
    assert_eq!(refused, Err(CallError::TooLarge { bytes, limit: limits::MAX_FRAME }));
    assert_eq!(b.service.requests.lock().len(), 1);
}

async fn an_answer_that_fits_no_frame_is_no_answer_and_the_next_call_works(world: World) {
    let (a, b) = (world.node(), world.node());
    let to = b.addr();
    let answer = async { b.held().await.send(vec![0; limits::MAX_FRAME + 1].into()) };
    let (call, ()) = tokio::join!(a.call(&to, HOLD, b""), answer);
    assert_eq!(call, Err(CallError::NoAnswer));
    assert_eq!(a.call(&to, REVERSE, b"ok").await.unwrap(), "ko");
}

async fn more_calls_than_there_is_room_for_are_refused_at_once_as_overloaded(world: World) {
    let (a, b) = (world.node(), world.node());
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    let deadline = soon();
    let calls: Vec<_> = (0..limits::MAX_CALLS)
        .map(|_| {
            let (transport, to) = (a.transport.clone(), b.addr());
            tokio::spawn(async move { transport.call(&to, Lane::Data, HOLD, Bytes::new(), deadline).await })
        })
        .collect();
    within("all calls to arrive", async {
        while b.service.held.lock().len() < limits::MAX_CALLS {
            b.service.held_changed.notified().await;
        }
    })
    .await;
    assert_eq!(a.call(&b.addr(), REVERSE, b"").await, Err(CallError::Overloaded));
    for responder in b.service.held.lock().drain(..) {
        responder.send(Bytes::new());
    }
    for call in calls {
        assert_eq!(within("a held call", call).await.unwrap(), Ok(Bytes::new()));
    }
    assert_eq!(a.call(&b.addr(), REVERSE, b"12").await.unwrap(), "21");
}

on_both_nets! {
    an_answer_comes_back_over_either_lane_and_in_both_directions_of_one_connection,
    echo_is_answered_by_the_transport_and_the_service_never_sees_it,
    a_thousand_concurrent_calls_of_all_sizes_get_each_its_own_answer,
    answers_come_in_any_order_and_one_that_waits_holds_up_nobody,
    a_responder_dropped_ends_the_call_at_once_with_no_answer,
    a_deadline_ends_the_call_and_says_whether_it_was_sent,
    the_largest_frame_passes_both_ways_and_a_larger_one_is_refused_unsent,
    an_answer_that_fits_no_frame_is_no_answer_and_the_next_call_works,
    more_calls_than_there_is_room_for_are_refused_at_once_as_overloaded,
}
