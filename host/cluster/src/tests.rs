//! Control planes over a network that can be partitioned and that loses replies: the outcomes of failures.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{ClusterId, Digest, NodeId, NodeUid};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{Command, Lineage, Member, MemberStatus, Outcome};
use annulus_core::version::{LEVEL, Speaks};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::ServerState;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::*;
use annulus_data_dir::open_database;
use annulus_transport::{CallError, PeerAddr, kind};

const LIMIT: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + LIMIT
}

mod decoders;
mod keys;
mod levels;
mod senders;
mod strange_lineage;

/// A network within the process. Calls are function calls, unless the pair of nodes is cut.
#[derive(Default)]
struct Net {
    nodes: Mutex<HashMap<NodeUid, Cluster>>,
    cut: Mutex<HashSet<(NodeUid, NodeUid)>>,
    /// Nodes that speak the first versions only.
    older: Mutex<HashSet<NodeUid>>,
    /// True if replies to proposals are lost.
    loses_answers: Mutex<bool>,
    /// Number of requests for a whole state.
    fetches: Mutex<usize>,
}

impl Net {
    fn cut(&self, a: &Cluster, b: &Cluster) {
        self.cut.lock().extend([(a.uid(), b.uid()), (b.uid(), a.uid())]);
    }
}

struct Link {
    net: Arc<Net>,
    from: NodeUid,
}

impl ControlNetwork for Link {
    fn call(
        &self,
        peer: PeerAddr,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (net, from) = (self.net.clone(), self.from);
        Box::pin(async move {
            *net.fetches.lock() += usize::from(kind == messages::FETCH_STATE);
            let is_cut = || net.cut.lock().contains(&(from, peer.uid));
            let target = net.nodes.lock().get(&peer.uid).cloned().filter(|_| !is_cut());
            let target = target.ok_or_else(|| CallError::Unreachable("cut".into()))?;
            let answer =
                tokio::time::timeout_at(deadline, target.answer(from, kind, &payload, deadline)).await;
            if is_cut() || (kind == kind::PROPOSE && *net.loses_answers.lock()) {
                return Err(CallError::Lost("cut".into()));
            }
            match answer {
                Ok(Ok(answer)) => Ok(answer.into()),
                Ok(Err(_)) => Err(CallError::NoAnswer),
                Err(_) => Err(CallError::Deadline { sent: true }),
            }
        })
    }

    /// Return the versions of a node. All running nodes are taken to have connected to each other.
    fn speaks(&self, peer: NodeUid) -> Option<Speaks> {
        self.net.nodes.lock().get(&peer).map(Cluster::speaks)
    }

    /// Return the address of a node. All running nodes are connected, unless the pair is cut.
    fn linked(&self, uid: NodeUid) -> Option<PeerAddr> {
        let is_cut = self.net.cut.lock().contains(&(self.from, uid));
        let runs = self.net.nodes.lock().contains_key(&uid);
        (runs && !is_cut).then(|| PeerAddr { uid, addr: ([127, 0, 0, 1], 1).into() })
    }
}

struct World {
    net: Arc<Net>,
    dir: tempfile::TempDir,
    nodes: Vec<Cluster>,
    next_start: Start,
    next_disk: Option<String>,
}

fn member(number: u8) -> Member {
    Member {
        id: NodeId(0),
        uid: NodeUid([number; 16]),
        name: format!("n{number}@h"),
        listen: format!("127.0.0.1:{}", 1000 + u16::from(number)),
        http: String::new(),
        zone: None,
        weight: 1,
        status: MemberStatus::Joining,
        staged: false,
        banned: false,
        key: Some(Digest([number; 32])),
    }
}

impl World {
    async fn founded() -> Self {
        Self::founded_in(Arc::default()).await
    }

    async fn founded_in(net: Arc<Net>) -> Self {
        Self::founded_with(net, "authority".into()).await
    }

    async fn founded_by(authority: String) -> Self {
        Self::founded_with(Arc::default(), authority).await
    }

    async fn founded_with(net: Arc<Net>, authority: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let level = if net.older.lock().is_empty() { LEVEL } else { 1 };
        let next_start = Start { number: 1, id: 1 };
        let mut world = Self { net, dir, nodes: Vec::new(), next_start, next_disk: None };
        let found = Command::Found {
            cluster: ClusterId([9; 16]),
            ring_size: RingSize::try_from(8).unwrap(),
            width: 3,
            founder: Member { key: None, ..member(1) },
            authority,
            authority_key: "key".into(),
            level,
        };
        world.start(1, NodeId(0), Some(found), None).await;
        world
    }

    /// Found a cluster and add two more voters.
    async fn of_three() -> Self {
        let mut world = Self::founded().await;
        world.join(2).await;
        world.join(3).await;
        let three_vote = |node: &Cluster| {
            let group = node.raft_members();
            group.voters.len() == 3 && !group.changing
        };
        world.until("three vote", three_vote).await;
        world
    }

    async fn start(
        &mut self,
        number: u8,
        me: NodeId,
        found: Option<Command>,
        seeded: Option<&annulus_core::state::ClusterState>,
    ) {
        // A node that is started again has another disk, unless the test sets one.
        let new = format!("{number}-{}-{}", self.nodes.len(), self.next_start.id);
        let disk = self.next_disk.take().unwrap_or(new);
        let database = open_database(&self.dir.path().join(&disk)).unwrap();
        if let Some(state) = seeded {
            seed(&database, state).await.unwrap();
        }
        let member = member(number);
        let beside = self.dir.path().join(format!("beside-{disk}"));
        std::fs::create_dir_all(&beside).unwrap();
        let older = self.net.older.lock().contains(&member.uid);
        let cluster = Cluster::start(ClusterConfig {
            database,
            beside,
            start: self.next_start,
            me,
            uid: member.uid,
            listen: member.listen.parse().unwrap(),
            listen_name: None,
            seeds: Vec::new(),
            http: member.http,
            place: Place::default(),
            network: Arc::new(Link { net: self.net.clone(), from: member.uid }),
            authority: annulus_data_dir::AuthorityFile::new(
                annulus_data_dir::Disk::real(),
                self.dir.path().join(format!("beside-{disk}")),
            ),
            speaks: if older { Speaks::FIRST } else { Speaks::THIS },
            found,
        });
        let cluster = timeout(LIMIT, cluster).await.unwrap().unwrap();
        self.net.nodes.lock().insert(cluster.uid(), cluster.clone());
        self.nodes.push(cluster);
    }

    /// Admit and start a node, without the join stream.
    async fn join(&mut self, number: u8) {
        let first = self.nodes[0].clone();
        let token = Digest([number; 32]);
        let issue = Command::IssueToken { token, now_ms: 0, expires_ms: 600_000, uses: None };
        first.propose(issue, soon()).await.unwrap();
        let binds = first.view().state.binds_keys();
        let joiner = Member { key: member(number).key.filter(|_| binds), ..member(number) };
        let admit = Command::Admit { member: joiner, token, now_ms: 1 };
        let (index, Outcome::Admitted(node)) = first.propose(admit, soon()).await.unwrap() else {
            panic!("not admitted")
        };
        let view = first.wait_applied(index, soon()).await.unwrap();
        self.start(number, node, None, Some(&view.state)).await;
        let joined = self.nodes.last().unwrap();
        see(joined, |view| view.serves()).await;
    }

    async fn until(&self, what: &str, condition: impl Fn(&Cluster) -> bool) {
        let until = soon();
        while !self.nodes.iter().all(&condition) {
            assert!(Instant::now() < until, "never: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Return the leader, and the others.
    async fn led(&self) -> (Cluster, Vec<Cluster>) {
        self.until("one leads", |node| {
            node.leader()
                .is_some_and(|leader| self.nodes.iter().any(|n| n.me() == leader && n.inner.group.leads()))
        })
        .await;
        let leader = self.nodes[0].leader().unwrap();
        let (mut leaders, others): (Vec<_>, Vec<_>) =
            self.nodes.iter().cloned().partition(|node| node.me() == leader);
        (leaders.pop().unwrap(), others)
    }
}

async fn see(node: &Cluster, condition: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
    timeout(LIMIT, node.watch().wait_for(condition)).await.expect("the view comes").unwrap().clone()
}

fn token(number: u8) -> Command {
    Command::IssueToken { token: Digest([number; 32]), now_ms: 20, expires_ms: 600_000, uses: None }
}

fn has_token(node: &Cluster, number: u8) -> bool {
    node.view().state.tokens.contains_key(&Digest([number; 32]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_changes_nothing_and_follows_the_new_one_when_it_is_back() {
    let world = World::of_three().await;
    let (old, others) = world.led().await;
    let recently = Duration::from_secs(2);
    assert!(world.nodes.iter().all(|node| node.heard_from_leader_within(recently)));
    for other in &others {
        world.net.cut(&old, other);
    }
    let (index, _) = others[0].propose(token(50), soon()).await.unwrap();
    others[1].wait_applied(index, soon()).await.unwrap();
    // The elections took longer than a leader waits, so it knows that it is alone.
    assert!(!old.heard_from_leader_within(Duration::from_secs(1)));
    let error = old.propose(token(51), Instant::now() + Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error, ProposeError::NoQuorum);
    assert!(!has_token(&old, 50));

    world.net.cut.lock().clear();
    see(&old, |view| view.index() >= index).await;
    world.until("the old leader is led", |node| node.heard_from_leader_within(recently)).await;
    let (index, _) = old.propose(token(52), soon()).await.unwrap();
    for node in &world.nodes {
        node.wait_applied(index, soon()).await.unwrap();
        assert!(has_token(node, 50) && !has_token(node, 51) && has_token(node, 52));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_on_its_way_is_unknown_never_not_applied() {
    let world = World::of_three().await;
    let (leader, others) = world.led().await;
    *world.net.loses_answers.lock() = true;
    assert_eq!(others[0].propose(token(50), soon()).await.unwrap_err(), ProposeError::Unknown);
    see(&leader, |_| has_token(&leader, 50)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_leader_in_reach_nothing_was_changed() {
    let world = World::of_three().await;
    let [a, b, c] = &world.nodes[..] else { panic!() };
    world.net.cut(a, b);
    world.net.cut(b, c);
    world.net.cut(a, c);
    // Until then the leader may accept the command, with an unknown outcome.
    world.until("all know", |node| !node.heard_from_leader_within(Duration::from_secs(1))).await;
    for node in &world.nodes {
        let asked = Instant::now();
        let error = node.propose(token(50), asked + Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(error, ProposeError::NoLeader | ProposeError::NoQuorum), "{error}");
        assert!(asked.elapsed() < Duration::from_secs(3));
        // A proposal that cannot succeed fails long before a long deadline.
        let asked = Instant::now();
        assert_eq!(node.propose(token(50), soon()).await.unwrap_err(), ProposeError::NoQuorum);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_in_progress_when_the_leader_stops_ends_with_a_true_outcome() {
    let world = World::of_three().await;
    let (old, others) = world.led().await;
    let patience = Duration::from_secs(10);
    let asked = Instant::now();
    let propose = |node: &Cluster, number: u8| {
        let (node, after) = (node.clone(), Duration::from_millis(u64::from(number) * 5));
        tokio::spawn(async move {
            tokio::time::sleep_until(asked + after).await;
            (number, node.propose(token(number), Instant::now() + patience).await)
        })
    };
    let under_way: Vec<_> =
        (50..250).map(|number| propose(&others[usize::from(number % 2)], number)).collect();
    tokio::time::sleep_until(asked + Duration::from_millis(600)).await;
    for other in &others {
        world.net.cut(&old, other);
    }
    let mut applied = 0;
    for task in under_way {
        let (number, outcome) = task.await.unwrap();
        match outcome {
            Ok((index, _)) => {
                applied += 1;
                others[0].wait_applied(index, soon()).await.unwrap();
                assert!(has_token(&others[0], number), "{number} was said to be applied");
            }
            Err(ProposeError::Unknown) => {}
            Err(error) => {
                assert!(matches!(error, ProposeError::NoLeader | ProposeError::NoQuorum), "{error}");
                assert!(!has_token(&others[0], number), "{number} was said not to be applied");
            }
        }
    }
    assert!(applied > 100, "{applied} of 200");
    assert!(asked.elapsed() < patience + Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_ne!(others[0].leader(), Some(old.me()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_never_said_anything_to_the_new_leader_is_swapped_for_a_live_learner() {
    let mut world = World::of_three().await;
    world.join(4).await;
    let (dead, live) = world.led().await;
    for other in &live {
        world.net.cut(&dead, other);
    }
    let swapped = |node: &Cluster| {
        let group = node.raft_members();
        node.me() == dead.me()
            || group.voters.len() == 3 && !group.changing && !group.voters.contains(&dead.me())
    };
    world.until("the dead voter is swapped", swapped).await;
    live[0].propose(token(50), soon()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_dropped_entries_gets_a_snapshot() {
    let mut world = World::of_three().await;
    let (leader, _) = world.led().await;
    leader.propose(token(50), soon()).await.unwrap();
    let dropped = leader.view().index();
    leader.inner.group.raft().trigger().snapshot().await.unwrap();
    let metrics = leader.inner.group.raft().metrics();
    let wait = |what: &'static str, mut metrics: tokio::sync::watch::Receiver<_>| async move {
        let until = |m: &openraft::RaftMetrics<u64, openraft::EmptyNode>| match what {
            "snapshot" => m.snapshot.is_some_and(|at| at.index >= dropped),
            _ => m.purged.is_some_and(|at| at.index >= dropped),
        };
        timeout(LIMIT, metrics.wait_for(until)).await.expect(what).unwrap();
    };
    wait("snapshot", metrics.clone()).await;
    leader.inner.group.raft().trigger().purge_log(dropped).await.unwrap();
    wait("purged", metrics).await;

    world.join(4).await;
    let last = world.nodes.last().unwrap();
    assert!(last.inner.group.raft().metrics().borrow().snapshot.is_some_and(|at| at.index >= dropped));
    assert!(has_token(last, 50));
    // The node continues from the snapshot.
    let (index, _) = last.propose(token(51), soon()).await.unwrap();
    last.wait_applied(index, soon()).await.unwrap();
    assert_eq!(last.inner.group.raft().metrics().borrow().state, ServerState::Learner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_leader_learns_the_ring_from_any_peer() {
    let world = World::of_three().await;
    let (leader, others) = world.led().await;
    let [near, far] = &others[..] else { panic!() };
    world.net.cut(&leader, far);
    // The node may not stand for election either, so that it learns from the others only by asking.
    far.inner.group.raft().runtime_config().elect(false);
    let (index, _) = leader.propose(token(50), soon()).await.unwrap();
    near.wait_applied(index, soon()).await.unwrap();
    let view = far.learn_from(near.me(), index, soon()).await.unwrap();
    assert!(view.index() >= index && has_token(far, 50));
    assert!(far.inner.group.raft().metrics().borrow().last_applied.unwrap().index < index, "not by Raft");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_callers_fetch_a_newer_version_once() {
    let world = World::of_three().await;
    let (leader, others) = world.led().await;
    let [near, far] = &others[..] else { panic!() };
    world.net.cut(&leader, far);
    far.inner.group.raft().runtime_config().elect(false);
    let (index, _) = leader.propose(token(50), soon()).await.unwrap();
    near.wait_applied(index, soon()).await.unwrap();
    let before = *world.net.fetches.lock();
    let asked = (0..200).map(|_| far.learn_from(near.me(), index, soon()));
    for learnt in futures_util::future::join_all(asked).await {
        assert!(learnt.unwrap().index() >= index);
    }
    assert_eq!(*world.net.fetches.lock() - before, 1);
    // A failed fetch serves no other caller, so the next one fetches again.
    let (next, _) = leader.propose(token(51), soon()).await.unwrap();
    near.wait_applied(next, soon()).await.unwrap();
    world.net.cut(near, far);
    let short = Instant::now() + Duration::from_millis(50);
    far.learn_from(near.me(), next, short).await.unwrap_err();
    world.net.cut.lock().clear();
    world.net.cut(&leader, far);
    far.learn_from(near.me(), next, soon()).await.unwrap();
}

impl World {
    /// Cut all pairs of nodes in different groups.
    fn split(&self, groups: &[&[&Cluster]]) {
        for (at, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(at + 1).flat_map(|group| group.iter()) {
                group.iter().for_each(|node| self.net.cut(node, other));
            }
        }
    }

    fn heal(&self) {
        self.net.cut.lock().clear();
    }

    /// Wait until all nodes have one state of this lineage, three vote, and the state can change.
    async fn one_again(&self, lineage: Lineage) {
        for node in &self.nodes {
            see(node, |view| view.state.lineage == lineage && view.serves()).await;
        }
        let three_vote = |node: &Cluster| {
            let group = node.raft_members();
            group.voters.len() == 3 && !group.changing
        };
        self.until("three vote", three_vote).await;
        let (index, _) = self.nodes[2].propose(token(200), soon()).await.unwrap();
        for node in &self.nodes {
            node.wait_applied(index, soon()).await.unwrap();
            assert_eq!(node.view().state, self.nodes[0].view().state);
        }
    }
}

/// Recover as an operator does: survey, and confirm.
async fn recover(node: &Cluster) -> Result<Recovered, RecoverError> {
    let seen = node.survey().await;
    node.recover((seen.state.lineage, seen.state.applied), &seen.answered).await
}

/// Wait until a node has had no leader for a while.
async fn lonely(node: &Cluster) {
    let until = soon();
    while node.heard_from_leader_within(Duration::from_secs(2)) {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_continues_alone_and_the_other_side_of_the_cut_adopts_its_state() {
    let world = World::of_three().await;
    let [a, b, c] = &world.nodes[..] else { panic!() };
    a.propose(token(50), soon()).await.unwrap();
    world.split(&[&[a], &[b, c]]);
    // The other side is a majority, and continues without knowledge of the recovery.
    let (index, _) = b.propose(token(51), soon()).await.unwrap();
    c.wait_applied(index, soon()).await.unwrap();
    lonely(a).await;

    let seen = a.survey().await;
    assert_eq!((seen.answered.as_slice(), seen.lost.len()), (&[a.me()][..], 2));
    let stale = a.recover((seen.state.lineage, seen.state.applied - 1), &seen.answered).await;
    assert!(matches!(stale, Err(RecoverError::Changed)), "{stale:?}");
    let done = recover(a).await.unwrap();
    assert_eq!((done.lineage.number, done.adopted), (1, vec![a.me()]));
    assert!(a.view().serves() && has_token(a, 50));
    a.propose(token(52), soon()).await.unwrap();
    assert_eq!(b.view().state.lineage, Lineage::default());

    world.heal();
    world.one_again(done.lineage).await;
    for node in &world.nodes {
        assert!(has_token(node, 50) && has_token(node, 52) && !has_token(node, 51));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_a_recovery_does_not_know_stays_and_has_no_say() {
    let mut world = World::of_three().await;
    let [a, b, c] = &world.nodes[..] else { panic!() };
    // A node joins while another is cut off, and that one recovers from its own state.
    world.split(&[&[a, b], &[c]]);
    see(a, |_| a.leader().is_some_and(|leader| leader != c.me())).await;
    world.join(4).await;
    let [a, b, c, d] = &world.nodes[..] else { panic!() };
    world.split(&[&[d], &[c]]);
    lonely(c).await;
    let done = recover(c).await.unwrap();
    world.heal();
    for node in [a, b] {
        see(node, |view| view.state.lineage == done.lineage && view.serves()).await;
    }
    // Raft no longer contacts the node, but a hello does.
    d.inner.lineages.hear_of(c.uid(), done.lineage);
    let view = see(d, |view| view.outside == Some(done.lineage)).await;
    assert!(!view.serves() && view.state.lineage == Lineage::default());
    assert_eq!(d.propose(token(60), soon()).await.unwrap_err(), ProposeError::Outside);
    let refused = recover(d).await;
    assert!(matches!(refused, Err(RecoverError::Outside)), "{refused:?}");
    // A second recovery that does not know the node either changes nothing for it.
    let next = done.lineage.next(9);
    d.inner.lineages.hear_of(c.uid(), next);
    let view = see(d, |view| view.superseded).await;
    assert!(!view.serves() && view.outside.is_some() && d.ended().borrow().is_none());
    c.propose(token(61), soon()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outdated_knowledge_of_the_voters_does_not_prevent_a_recovery() {
    let mut world = World::of_three().await;
    world.join(4).await;
    let (leader, _) = world.led().await;
    let newcomer = world.nodes[3].clone();
    let others: Vec<&Cluster> = world.nodes[..3].iter().filter(|node| node.me() != leader.me()).collect();
    let [late, moved] = others[..] else { panic!() };
    // The voters change while one of them is away.
    world.split(&[&[late], &[&leader, moved, &newcomer]]);
    let voters = std::collections::BTreeSet::from([leader.me().0, moved.me().0, newcomer.me().0]);
    let (raft, until) = (leader.inner.group.raft(), soon());
    loop {
        match timeout(LIMIT, raft.change_membership(voters.clone(), true)).await.unwrap() {
            Ok(_) => break,
            // The claimant's last change is not committed yet.
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            ))) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error}"),
        }
    }
    let knows = |node: &Cluster| node.raft_members().voters.iter().map(|node| node.0).eq(voters.clone());
    let until = soon();
    while !knows(moved) {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.heal();
    world.split(&[&[late, moved], &[&leader, &newcomer]]);
    lonely(late).await;
    // Two of the three voters that it knows are up, and neither can be elected.
    let until = soon();
    let seen = loop {
        let seen = late.survey().await;
        if late.needs_recovery(&seen).await {
            break seen;
        }
        assert!(Instant::now() < until, "a recovery is never allowed");
    };
    assert_eq!(seen.answered.len(), 2);
    recover(late).await.unwrap();
}

/// A leader without a majority goes on to lead those that it reaches, who hear from it all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_of_a_leader_without_a_majority_may_recover() {
    let mut world = World::of_three().await;
    world.join(4).await;
    let (leader, _) = world.led().await;
    let learner = world.nodes[3].clone();
    let voters: Vec<&Cluster> = world.nodes[..3].iter().filter(|node| node.me() != leader.me()).collect();
    world.split(&[&[&leader, &learner], &voters]);
    let until = soon();
    let seen = loop {
        let seen = learner.survey().await;
        if learner.needs_recovery(&seen).await {
            break seen;
        }
        assert!(Instant::now() < until, "a recovery is never allowed");
    };
    assert!(learner.heard_from_leader_within(Duration::from_secs(2)) && seen.answered.len() == 2);
    world.heal();
    let until = soon();
    while learner.needs_recovery(&learner.survey().await).await {
        assert!(Instant::now() < until, "a majority follows the leader again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_takes_the_newest_state_of_all_survivors_and_brings_them_over() {
    let mut world = World::of_three().await;
    world.join(4).await;
    let [a, b, c, d] = &world.nodes[..] else { panic!() };
    let (leader, _) = world.led().await;
    assert_ne!(leader.me(), d.me(), "it only learns");
    // One voter and not the learner gets the last entry of the old group.
    let first = [a, b, c].into_iter().find(|node| node.me() != leader.me()).unwrap();
    let others: Vec<&Cluster> =
        [a, b, c].into_iter().filter(|node| ![leader.me(), first.me()].contains(&node.me())).collect();
    others.iter().for_each(|node| world.net.cut(node, d));
    world.split(&[&[&leader, first], &[d]]);
    let (index, _) = leader.propose(token(50), soon()).await.unwrap();
    first.wait_applied(index, soon()).await.unwrap();
    assert!(!has_token(d, 50));
    world.heal();
    // Now two of the three voters are gone.
    world.split(&[&[first, d], &[&leader], &others[..1]]);
    lonely(d).await;
    lonely(first).await;
    let done = recover(d).await.unwrap();
    assert!(done.basis.answered.contains(&first.me()));
    assert!(done.adopted.contains(&first.me()) && done.adopted.contains(&d.me()), "{:?}", done.adopted);
    assert!(has_token(d, 50) && first.view().state.lineage == done.lineage);
    first.propose(token(52), soon()).await.unwrap();
    // The other nodes come back later.
    world.heal();
    world.one_again(done.lineage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_recoveries_the_lower_one_is_abandoned() {
    let world = World::of_three().await;
    let [a, b, c] = &world.nodes[..] else { panic!() };
    world.split(&[&[a], &[b], &[c]]);
    for node in &world.nodes {
        lonely(node).await;
    }
    let (one, two) = (recover(a).await.unwrap().lineage, recover(b).await.unwrap().lineage);
    assert_eq!((one.number, two.number), (1, 1));
    assert_ne!(one, two);
    a.propose(token(60), soon()).await.unwrap();
    b.propose(token(61), soon()).await.unwrap();
    world.heal();
    world.one_again(one.max(two)).await;
    assert!(has_token(c, 60) == (one > two) && has_token(c, 61) == (two > one));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_is_refused_while_a_majority_is_reachable() {
    let world = World::of_three().await;
    let refused = recover(&world.nodes[1]).await;
    assert!(matches!(refused, Err(RecoverError::NotNeeded)), "{refused:?}");
    assert!(world.nodes.iter().all(|node| node.view().state.lineage == Lineage::default()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_not_the_newest_is_noticed_before_its_raft_takes_part() {
    let mut world = World::of_three().await;
    let (_, others) = world.led().await;
    let old = others[0].clone();
    let number = 1 + world.nodes.iter().position(|node| node.me() == old.me()).unwrap() as u8;
    let state = old.view().state.clone();
    old.stop().await;
    let copies = [
        // The directory was copied, and both copies started.
        (Start { number: 1, id: 2 }, "start 1 has been seen"),
        // The directory was copied after its last start, and the original has continued since.
        (Start { number: 2, id: 3 }, "has acknowledged entry"),
        // The second copy has left no trace that would speak against the newest disk's next start.
        (Start { number: 1, id: 4 }, "start 1 has been seen"),
    ];
    for (start, reason) in copies {
        world.next_start = start;
        world.start(number, old.me(), None, Some(&state)).await;
        let copy = world.nodes.pop().unwrap();
        let mut ended = copy.ended();
        let why = timeout(LIMIT, ended.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
        assert!(matches!(&why, Some(Ended::Stale(why)) if why.contains(reason)), "{why:?}");
        assert!(!copy.takes_part());
        copy.stop().await;
    }
    // The others continue.
    others[1].propose(token(50), soon()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_peer_to_ask_a_disk_is_believed_and_asks_until_there_is_one() {
    let mut world = World::of_three().await;
    let (_, others) = world.led().await;
    let old = others[0].clone();
    let number = 1 + world.nodes.iter().position(|node| node.me() == old.me()).unwrap() as u8;
    let state = old.view().state.clone();
    old.stop().await;
    let rest: Vec<Cluster> = world.nodes.iter().filter(|node| node.me() != old.me()).cloned().collect();
    rest.iter().for_each(|node| world.net.cut(&old, node));
    world.start(number, old.me(), None, Some(&state)).await;
    let again = world.nodes.pop().unwrap();
    let until = soon();
    while !again.takes_part() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(*again.ended().borrow(), None);
    again.stop().await;

    world.next_start = Start { number: 1, id: 2 };
    world.start(number, old.me(), None, Some(&state)).await;
    let copy = world.nodes.pop().unwrap();
    while !copy.takes_part() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The objection arrives late, and still ends the node.
    world.heal();
    let mut ended = copy.ended();
    let why = timeout(LIMIT, ended.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert!(matches!(why, Some(Ended::Stale(_))), "{why:?}");
}

#[tokio::test]
async fn a_join_with_a_wrong_secret_costs_no_entry_of_the_log() {
    let world = World::founded().await;
    let node = &world.nodes[0];
    let before = node.view().index();
    for number in 0..1000_u32 {
        let request = messages::JoinRequest {
            cluster: node.view().state.cluster,
            member: member(9),
            public_key: vec![0; 65],
            secret: number.to_be_bytes().to_vec(),
            ring_size: None,
            speaks: Speaks::THIS,
            operator_key: None,
        };
        let reply = node.inner.admission.admit(request).await;
        assert!(matches!(&reply, messages::JoinReply::Refused(annulus_core::state::Refusal::BadToken)));
    }
    assert_eq!(node.view().index(), before);
}

#[tokio::test]
async fn a_command_that_could_not_be_replicated_is_refused() {
    let world = World::founded().await;
    let huge = Member { name: "x".repeat(2 << 20), ..member(9) };
    let command = Command::Admit { member: huge, token: Digest([1; 32]), now_ms: 0 };
    let refused = world.nodes[0].propose(command, soon()).await.unwrap_err();
    assert!(refused.to_string().contains("limit"), "{refused}");
}

#[tokio::test]
async fn a_token_ends_by_the_clock_of_the_leader() {
    let world = World::founded().await;
    let node = &world.nodes[0];
    let secret = Digest([8; 32]);
    // The proposer's clock is far ahead, and then far behind.
    let issue =
        Command::IssueToken { token: secret, now_ms: u64::MAX - 500, expires_ms: u64::MAX, uses: None };
    node.propose(issue, soon()).await.unwrap();
    let ends_ms = node.view().state.tokens[&secret];
    assert!(ends_ms.abs_diff(token::now_ms()) <= 500, "{ends_ms}");
    while token::now_ms() < ends_ms {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = node.view().index();
    let late = Command::Admit { member: member(9), token: secret, now_ms: 0 };
    let refused = node.propose(late, soon()).await.unwrap_err();
    assert_eq!(refused, ProposeError::Refused(annulus_core::state::Refusal::BadToken));
    assert_eq!(node.view().index(), before, "a token that has ended adds no entry to the log");
    let longer = Command::IssueToken { token: secret, now_ms: 0, expires_ms: 86_400_001, uses: None };
    let refused = node.propose(longer, soon()).await.unwrap_err();
    assert!(refused.to_string().contains("24 hours"), "{refused}");
}
