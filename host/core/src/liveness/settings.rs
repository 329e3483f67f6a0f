//! The times of liveness.

use std::time::Duration;

/// How long what may take, and how many take part. All nodes of a cluster have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many living members each node pings, and is pinged by.
    pub watched: usize,
    /// How often it pings each of them.
    pub ping: Duration,
    /// After so much silence a member is doubted.
    pub doubt: Duration,
    /// How often a doubted member is pinged.
    pub doubted_ping: Duration,
    /// How often others are asked about a doubted member.
    pub ask: Duration,
    /// How many others are asked; also how many foca gossips to at a time.
    pub helpers: usize,
    /// After so much silence, of all those asked too, a member is down.
    pub down: Duration,
    /// An answer counts for so long after its question.
    pub answer: Duration,
    /// A node to whom nobody answered for so long accuses nobody.
    pub cut_off: Duration,
    /// How often a member that is down is pinged.
    pub knock: Duration,
    /// At how many of those at a time.
    pub knocks: usize,
    /// Tables that differ for so long are exchanged.
    pub compare: Duration,
    /// A member whose death only a table reports has so long to deny it.
    pub claim: Duration,
    /// How often foca passes on what has changed, while there is something.
    pub gossip_period: Duration,
    /// How often foca probes a random member.
    pub probe_period: Duration,
    /// How long foca waits before it asks others to probe.
    pub probe_rtt: Duration,
    /// How long foca suspects whom it could not probe.
    pub suspicion: Duration,
    /// How often the watch looks at its targets.
    pub round: Duration,
    /// Whoever carries the machine wakes at the multiples of this with less effort than at other times:
    /// what is done steadily, while all is in order, waits for one.
    pub beat: Duration,
    /// Timers that come so late say that this node was held up.
    pub late: Duration,
}

impl Settings {
    /// The first beat from this time on.
    pub(super) fn on_beat(&self, time: Duration) -> Duration {
        let (time, beat) = (time.as_nanos(), self.beat.as_nanos().max(1));
        // In range: 500 years.
        Duration::from_nanos((time.div_ceil(beat) * beat) as u64)
    }
}

impl Default for Settings {
    /// For a LAN, up to a hundred nodes and more.
    ///
    /// 2 s are promised from a crash to the last survivor's knowing it. `down` takes 1.3 s of
    /// them, counted from the last answer, so that the ping period costs nothing; gossip reaches a
    /// hundred nodes in 0.3 s (measured in the tests: the slowest of 100 nodes after 1.6 s). Nothing in
    /// it grows with the cluster but the gossip, by its logarithm.
    ///
    /// In the other direction 1.3 s are what a node may be held up without being told so, while its
    /// peers are not: a machine of two cores with a compiler running holds a thread up for
    /// 100 ms and more, not for seconds. A node that answers 300 ms late is heard every 250 ms
    /// all the same and is never even doubted. With a fifth of all packets lost (a third of
    /// all pings unanswered) a doubted member has 16 more pings and 4 times 3 helpers in
    /// the 0.8 s until it is down: even of two nodes alone, less than once in ten million doubts all of them fail.
    ///
    /// A ping waits for the next beat, so at rest it is 256 to 314 ms and not 250 from one to the next; doubt and what
    /// follows do not wait.
    ///
    /// Five are watched: with two packets each 250 ms these are 40 packets a second of 40 bytes, at any
    /// size of the cluster, and if half of all nodes is cut from the other half, 31 of 32 have a watcher on
    /// the other side; the others are found 0.5 s later, by who looks past the doubted ones.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            watched: 5,
            ping: ms(250),
            doubt: ms(500),
            doubted_ping: ms(50),
            ask: ms(200),
            helpers: 3,
            down: ms(1300),
            answer: ms(2000),
            cut_off: ms(800),
            knock: ms(500),
            knocks: 8,
            compare: ms(600),
            claim: ms(800),
            gossip_period: ms(100),
            probe_period: ms(2000),
            probe_rtt: ms(500),
            suspicion: ms(4000),
            round: ms(50),
            beat: ms(64),
            late: ms(100),
        }
    }
}
