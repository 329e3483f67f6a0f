//! Effects of the in-memory network on the transport. Time is paused, so every duration is exact.

use std::collections::BTreeSet;

use quinn::ConnectionError;

use super::super::identity::ANY_NODE;
use super::super::kind::BULK_HANDOFF;
use super::super::memory::Weather;
use super::super::wire::ClientConfig;
use super::*;

/// Delay of every packet.
const UNDER_WAY: Duration = Duration::from_millis(5);

/// Weather with a constant delay, and with cuts.
#[derive(Default)]
struct Plain {
    cut: Mutex<BTreeSet<(IpAddr, IpAddr)>>,
}

impl Weather for Plain {
    fn delay(&self, _: SocketAddr, _: SocketAddr, _: usize) -> Duration {
        UNDER_WAY
    }

    fn is_cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.cut.lock().contains(&(from.ip(), to.ip()))
    }
}

struct Sky {
    world: World,
    network: Network,
    weather: Arc<Plain>,
}

impl Sky {
    fn new() -> Self {
        let weather = Arc::new(Plain::default());
        let network = Network::new(weather.clone());
        let world = World::of(network.clone(), Scope::new(ScopeId(0), Arc::new(Counts::default())));
        Self { world, network, weather }
    }

    fn cut(&self, from: &Node, to: &Node) {
        self.weather.cut.lock().insert((ip(from), ip(to)));
        self.network.changed();
    }

    fn mend(&self) {
        self.weather.cut.lock().clear();
        self.network.changed();
    }

    /// Start two nodes with a connection that the first has dialled.
    async fn pair(&self) -> (Node, Node) {
        let (a, b) = (self.world.node(), self.world.node());
        a.call(&b.addr(), ECHO, b"").await.unwrap();
        // The accepting side responds on a lane before its entry has the link.
        within("the link on the other side", async {
            while !b.transport.is_up(a.uid()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        (a, b)
    }
}

fn ip(node: &Node) -> IpAddr {
    node.config.listen.ip()
}

/// Check a duration to within two milliseconds. Timers have a resolution of one millisecond.
#[track_caller]
fn assert_near(took: Duration, expected: Duration) {
    let slack = Duration::from_millis(2);
    assert!(took + slack >= expected && took <= expected + slack, "{took:?} instead of {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_first_call_takes_the_round_trips_of_the_handshake_and_the_hello() {
    let sky = Sky::new();
    let (a, b) = (sky.world.node(), sky.world.node());
    let begun = Instant::now();
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    // The handshake takes three packets. The hello travels with the last one and is answered; then follows
    // the call.
    assert_near(begun.elapsed(), UNDER_WAY * 6);
    let begun = Instant::now();
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    assert_near(begun.elapsed(), UNDER_WAY * 2);
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_nowhere_ends_at_its_limit() {
    let sky = Sky::new();
    let a = sky.world.node();
    let peer = PeerAddr { uid: uid(), addr: sky.world.silent().addr };
    let begun = Instant::now();
    let error = a.call(&peer, ECHO, b"").await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("no answer")), "{error}");
    assert_near(begun.elapsed(), limits::DIAL_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_needs_both_directions_and_continues_once_both_are_open() {
    let sky = Sky::new();
    for answer in [false, true] {
        let (a, b) = (sky.world.node(), sky.world.node());
        if answer {
            sky.cut(&b, &a)
        } else {
            sky.cut(&a, &b)
        }
        let error = a.call(&b.addr(), ECHO, b"").await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable(_)), "{error}");
        sky.mend();
        // Lost packets are sent again within a dial.
        let (c, begun) = (sky.world.node(), Instant::now());
        sky.cut(&c, &b);
        let to = b.addr();
        let (called, ()) = tokio::join!(c.call(&to, ECHO, b""), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sky.mend();
        });
        called.unwrap();
        assert_near(begun.elapsed(), Duration::from_millis(150) + UNDER_WAY * 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_one_way_is_silence_at_its_end_and_a_close_at_the_other() {
    let sky = Sky::new();
    let (a, b) = sky.pair().await;
    sky.cut(&a, &b);
    let begun = Instant::now();
    let error = a.call(&b.addr(), HOLD, b"").await.unwrap_err();
    assert!(matches!(&error, CallError::Lost(why) if why.contains("too long")), "{error}");
    assert_near(begun.elapsed(), limits::SILENCE_LIMIT + UNDER_WAY);
    assert!(!b.transport.is_up(a.uid()));
    // The cut held up packets of a connection that has ended, so the request never arrives.
    sky.mend();
    a.call_until_answered(&b.addr()).await;
    assert!(b.service.requests.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cut_shorter_than_silence_loses_datagrams_and_nothing_else() {
    let sky = Sky::new();
    let (a, mut b) = sky.pair().await;
    sky.cut(&a, &b);
    let to = b.addr();
    a.transport.send_datagram(&to, Bytes::from_static(b"lost"));
    let (answer, ()) = tokio::join!(a.call(&to, REVERSE, b"abc"), async {
        tokio::time::sleep(limits::SILENCE_LIMIT - Duration::from_millis(50)).await;
        sky.mend();
    });
    assert_eq!(answer.unwrap(), "cba");
    a.transport.send_datagram(&b.addr(), Bytes::from(vec![0; 2000]));
    a.transport.send_datagram(&b.addr(), Bytes::from_static(b"there"));
    let came = within("a datagram", b.datagrams.recv()).await.unwrap();
    assert_eq!(came.1, "there", "one was lost, and one was larger than a packet");
}

#[tokio::test(start_paused = true)]
async fn nothing_leaves_a_killed_node_whatever_its_destructors_say() {
    let sky = Sky::new();
    let (a, b) = sky.pair().await;
    let (to, transport) = (b.addr(), a.transport.clone());
    let call = tokio::spawn(async move { transport.call(&to, Lane::Data, HOLD, Bytes::new(), soon()).await });
    let held = b.held().await;
    sky.network.kill(ip(&b));
    let killed = Instant::now();
    // Without the kill, this would send "no answer" and close all connections.
    drop(held);
    b.transport.close().await;
    let (config, own) = (b.config.clone(), b.transport.clone());
    drop(b);
    let late = own.call(&a.addr(), Lane::Data, ECHO, Bytes::new(), soon()).await;
    assert!(late.is_err(), "{late:?}");
    let error = within("the call's end", call).await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Lost(why) if why.contains("silent")), "{error}");
    assert_near(killed.elapsed().max(limits::SILENCE_LIMIT), limits::SILENCE_LIMIT);
    // Its address is free at once, and the next process there is a different one.
    let again = sky.world.start(TransportConfig { boot: BootId([9; 16]), ..config });
    a.call_until_answered(&again.addr()).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_node_is_silent_and_learns_of_its_closed_connection_later() {
    let sky = Sky::new();
    let scope = Scope::new(ScopeId(1), Arc::new(Counts::default()));
    let (a, b) = (sky.world.node(), scope.enter(|| sky.world.node()));
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    let link = b.transport.shared.peer(a.uid()).link().unwrap();
    sky.network.pause(ip(&b));
    scope.pause();
    let paused = Instant::now();
    let error = a.call(&b.addr(), REVERSE, b"").await.unwrap_err();
    assert!(matches!(&error, CallError::Lost(why) if why.contains("silent")), "{error}");
    assert_near(paused.elapsed(), limits::SILENCE_LIMIT);
    tokio::time::sleep(Duration::from_secs(1)).await;
    sky.network.resume(ip(&b));
    scope.resume();
    let end = within("the end", link.connection.closed()).await;
    assert!(super::super::close::Close::Silent.is(&end), "{end}");
    a.call_until_answered(&b.addr()).await;
}

#[tokio::test(start_paused = true)]
async fn a_close_held_up_by_a_cut_is_seen_as_a_reset_or_a_timeout() {
    let sky = Sky::new();
    let authorities = [sky.world.authority.cert_pem.clone()];
    // Without the transport's silence detection, the end is noticed only by QUIC's own limit.
    let after_close = (Duration::from_secs(3), ConnectionError::Reset);
    let (long, limit) = (Duration::from_secs(60), limits::IDLE_TIMEOUT);
    for (mended, ended, error) in
        [(after_close.0, after_close.0 + UNDER_WAY, after_close.1), (long, limit, ConnectionError::TimedOut)]
    {
        let [own, peers] = [(); 2].map(|()| sky.world.listen());
        let [net, peers_net] = [own, peers].map(|addr| sky.world.net(addr.ip()));
        let credentials = Credentials::new(&peers_net, &sky.world.sign_node(uid()), &authorities).unwrap();
        let server =
            Endpoint::bind(&peers_net, peers, Some(credentials.server(tuning::transport()))).unwrap();
        let client = Endpoint::bind(&net, own, None).unwrap();
        let config = ClientConfig::trusting(&net, &authorities, None).unwrap();
        let connecting = client.connect_with(config, server.local_addr().unwrap(), ANY_NODE).unwrap();
        let (connection, accepted) =
            tokio::join!(connecting, async { server.accept().await.unwrap().accept().unwrap().await });
        let (connection, accepted) = (connection.unwrap(), accepted.unwrap());
        sky.weather.cut.lock().insert((peers.ip(), own.ip()));
        sky.network.changed();
        let begun = Instant::now();
        accepted.close(7u32.into(), b"nobody hears it");
        let (end, ()) = tokio::join!(async { (connection.closed().await, begun.elapsed()) }, async {
            tokio::time::sleep(mended).await;
            sky.mend();
        });
        assert_eq!(end.0, error);
        assert_near(end.1, ended);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_its_window_holds_up_no_other() {
    let sky = Sky::new();
    let (a, mut b) = sky.pair().await;
    let mut full = a.transport.open_bulk(&b.addr(), BULK_HANDOFF, Bytes::new(), soon()).await.unwrap();
    let _unread = within("the stream", b.bulk.recv()).await.unwrap();
    let begun = Instant::now();
    let written = async {
        loop {
            if let Err(error) = full.send.frame(Bytes::from(vec![1; 1 << 20])).await {
                return error;
            }
        }
    };
    let others = async {
        for _ in 0..100 {
            a.call(&b.addr(), REVERSE, b"past it").await.unwrap();
        }
        begun.elapsed()
    };
    let (error, others) = tokio::join!(written, others);
    assert_near(others, UNDER_WAY * 200);
    assert_eq!(error, BulkError::Stalled);
    assert_near(begun.elapsed(), limits::BULK_STALL_LIMIT);
}
