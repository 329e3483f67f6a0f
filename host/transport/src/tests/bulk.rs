//! Bulk streams between nodes.

use super::super::kind::{BULK_HANDOFF, BULK_JOIN};
use super::*;

async fn pair(a: &Node, b: &mut Node) -> (BulkStream, BulkStream) {
    let header = Bytes::from_static(b"head");
    let ours = a.transport.open_bulk(&b.addr(), BULK_HANDOFF, header, soon()).await.unwrap();
    let (from, kind, header, theirs) = within("the stream", b.bulk.recv()).await.unwrap();
    assert_eq!(from, PeerIdentity::Node { uid: a.uid(), boot: a.config.boot });
    assert_eq!((kind, header), (BULK_HANDOFF, Bytes::from_static(b"head")));
    (ours, theirs)
}

async fn frames_of_all_sizes_pass_both_ways_in_order_and_end_well(world: World) {
    let (a, mut b) = (world.node(), world.node());
    let (ours, theirs) = pair(&a, &mut b).await;
    let sizes = [0, 1, 4096, 4097, 0, 70_000, limits::MAX_BULK_FRAME, 5];
    let send = |mut send: BulkSend| async move {
        for (index, bytes) in sizes.into_iter().enumerate() {
            send.frame(vec![index as u8; bytes].into()).await.unwrap();
        }
        send.finish().await.unwrap();
    };
    let receive = |mut recv: BulkRecv| async move {
        for (index, bytes) in sizes.into_iter().enumerate() {
            assert_eq!(recv.frame().await.unwrap().unwrap(), vec![index as u8; bytes]);
        }
        assert_eq!(recv.frame().await, Ok(None));
        assert_eq!(recv.frame().await, Ok(None), "and stays at the end");
    };
    let all =
        async { tokio::join!(send(ours.send), receive(ours.recv), send(theirs.send), receive(theirs.recv)) };
    within("both directions", all).await;
}

async fn a_waiting_reader_holds_the_writer_back_while_calls_pass(world: World) {
    let (a, mut b) = (world.node(), world.node());
    let (mut ours, mut theirs) = pair(&a, &mut b).await;
    const FRAMES: usize = 64;
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let writer = tokio::spawn(async move {
        for _ in 0..FRAMES {
            ours.send.frame(Bytes::from(vec![1; 1 << 20])).await?;
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        ours.send.finish().await
    });
    // The frames' lengths take part of the window too, so one frame less fits.
    let window = (limits::STREAM_WINDOW as usize >> 20) - 1;
    within("the window to be full", async {
        while sent.load(std::sync::atomic::Ordering::Relaxed) < window {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for _ in 0..100 {
        a.call(&b.addr(), REVERSE, b"past the bulk").await.unwrap();
    }
    let ahead = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(ahead <= window, "{ahead} MiB instead of {window} went into the window");
    let mut frames = 0;
    while let Some(frame) = within("a frame", theirs.recv.frame()).await.unwrap() {
        assert_eq!(frame.len(), 1 << 20);
        frames += 1;
    }
    assert_eq!(frames, FRAMES);
    within("the writer", writer).await.unwrap().unwrap();
}

async fn a_sender_dropped_unfinished_resets_the_stream_which_never_looks_whole(world: World) {
    let (a, mut b) = (world.node(), world.node());
    let (mut ours, mut theirs) = pair(&a, &mut b).await;
    ours.send.frame(Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(theirs.recv.frame().await.unwrap().unwrap(), "one");
    drop(ours.send);
    assert_eq!(within("the end", theirs.recv.frame()).await, Err(BulkError::GivenUp));
    // Dropping a receiver also informs the sender.
    drop(ours.recv);
    let refused = within("the refusal", async {
        loop {
            if let Err(error) = theirs.send.frame(Bytes::from(vec![0; 1000])).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(refused.await, BulkError::GivenUp);
}

async fn a_frame_over_the_limit_is_refused_unsent(world: World) {
    let (a, mut b) = (world.node(), world.node());
    let (mut ours, mut theirs) = pair(&a, &mut b).await;
    let bytes = limits::MAX_BULK_FRAME + 1;
    let refused = ours.send.frame(vec![0; bytes].into()).await;
    assert_eq!(refused, Err(BulkError::TooLarge { bytes, limit: limits::MAX_BULK_FRAME }));
    ours.send.frame(Bytes::from_static(b"fits")).await.unwrap();
    assert_eq!(theirs.recv.frame().await.unwrap().unwrap(), "fits");
}

async fn there_is_a_limit_of_streams_and_a_place_is_free_again_when_one_ends(world: World) {
    let (a, mut b) = (world.node(), world.node());
    let mut open = Vec::new();
    for _ in 0..limits::MAX_BULK_STREAMS {
        open.push(pair(&a, &mut b).await);
    }
    let deadline = Instant::now() + Duration::from_millis(50);
    let refused = a.transport.open_bulk(&b.addr(), BULK_HANDOFF, Bytes::new(), deadline).await;
    assert_eq!(refused.err(), Some(CallError::Deadline { sent: false }));
    open.pop();
    within("a place", pair(&a, &mut b)).await;
}

async fn a_stream_to_a_node_that_stops_is_lost(world: World) {
    let (a, mut b) = (world.node(), world.node());
    let (mut ours, _theirs) = pair(&a, &mut b).await;
    b.transport.close().await;
    let error = within("the end", ours.recv.frame()).await.unwrap_err();
    assert!(matches!(error, BulkError::Lost(_)), "{error}");
    let again = a.transport.open_bulk(&b.addr(), BULK_JOIN, Bytes::new(), soon()).await;
    assert!(matches!(again.err(), Some(CallError::Unreachable(_))));
}

on_both_nets! {
    frames_of_all_sizes_pass_both_ways_in_order_and_end_well,
    a_waiting_reader_holds_the_writer_back_while_calls_pass,
    a_sender_dropped_unfinished_resets_the_stream_which_never_looks_whole,
    a_frame_over_the_limit_is_refused_unsent,
    there_is_a_limit_of_streams_and_a_place_is_free_again_when_one_ends,
    a_stream_to_a_node_that_stops_is_lost,
}
