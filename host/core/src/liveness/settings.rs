//! Settings of the failure detector.

use std::time::Duration;

/// Periods, limits and numbers of members involved. All nodes of a cluster have the same settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Number of live members that each node pings, and is pinged by. More cost traffic; fewer are more likely to
    /// be all on one side of a partition.
    pub watched: usize,
    /// Period of those pings. At most half of `doubt`, so that a late reply raises no doubt.
    pub ping: Duration,
    /// Silence after which a member is doubted. Longer than the slowest reply of a healthy node plus `ping`.
    pub doubt: Duration,
    /// Period of pings to a doubted member.
    pub doubted_ping: Duration,
    /// Period of requests to others for indirect pings of a doubted member.
    pub ask: Duration,
    /// Number of members asked per request; also the fan-out of foca's gossip.
    pub helpers: usize,
    /// Silence, towards this node and all helpers, after which a member is down. Bounds how long a crash stays
    /// undetected, and how long a healthy node may be held up.
    pub down: Duration,
    /// Age up to which a reply counts.
    pub answer: Duration,
    /// Time without a reply from any member after which a node declares no member down. Less than `down`.
    pub cut_off: Duration,
    /// Period of pings to down members.
    pub probe_down: Duration,
    /// Most down members pinged per period.
    pub probe_down_count: usize,
    /// Time after which tables that differ are exchanged. Longer than gossip takes.
    pub compare: Duration,
    /// Time for a member to refute a death that only a table reports.
    pub suspicion: Duration,
    /// Period of foca's gossip, while there are changes.
    pub gossip_period: Duration,
    /// Period of foca's probes of a random member.
    pub probe_period: Duration,
    /// Time before foca asks others to probe.
    pub probe_rtt: Duration,
    /// Time for a member to refute foca's suspicion after a failed probe.
    pub probe_suspicion: Duration,
    /// Period of the watch's rounds while a member is doubted or down.
    pub round: Duration,
    /// The caller wakes more cheaply at multiples of this period than at other times. Steady pings wait for one.
    pub beat: Duration,
    /// Delay of a timer after which this node assumes that it was held up.
    pub late: Duration,
}

impl Settings {
    /// Return the first beat at or after a time.
    pub(super) fn on_beat(&self, time: Duration) -> Duration {
        let (time, beat) = (time.as_nanos(), self.beat.as_nanos().max(1));
        // The number stays in range for 500 years.
        Duration::from_nanos((time.div_ceil(beat) * beat) as u64)
    }
}

impl Default for Settings {
    /// Settings for a LAN with a hundred nodes and more.
    ///
    /// All survivors know of a crash within 2 s. `down` takes 1.3 s of these, counted from the last reply, so that
    /// the ping period adds nothing; gossip reaches a hundred nodes in 0.3 s (measured in the tests: the slowest
    /// of 100 nodes after 1.6 s). Only gossip grows with the cluster, by its logarithm.
    ///
    /// In the other direction, 1.3 s is how long a node may be held up, while its peers are not, without being
    /// declared down: a machine with two cores and a running compiler holds a thread up for 100 ms and more, not
    /// for seconds. A node that replies 300 ms late is still heard every 250 ms and is never doubted. With a fifth
    /// of all packets lost (a third of all pings without a reply) a doubted member gets 16 more pings and 4 times
    /// 3 helpers in the 0.8 s until it is down: even with two nodes only, all of these fail in fewer than one of
    /// ten million doubts.
    ///
    /// A steady ping waits for the next beat, so its period at rest is 256 to 314 ms instead of 250. Doubt and
    /// later stages do not wait.
    ///
    /// With five watched members and two packets per 250 ms each, traffic is 40 packets of 40 bytes per second at any
    /// size of the cluster. If the cluster splits in halves, 31 of 32 members have a watcher on the other side; the
    /// others are found 0.5 s later, by watchers that skip doubted members.
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
            probe_down: ms(500),
            probe_down_count: 8,
            compare: ms(600),
            suspicion: ms(800),
            gossip_period: ms(100),
            probe_period: ms(2000),
            probe_rtt: ms(500),
            probe_suspicion: ms(4000),
            round: ms(50),
            beat: ms(64),
            late: ms(100),
        }
    }
}
