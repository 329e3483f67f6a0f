//! Whole nodes on loopback, with real transport and disks: founding, joining, leaving, restarting.
//!
//! No module runs, so handoffs transfer no items.

#![allow(clippy::unwrap_used)]

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use annulus_core::ids::{Digest, NodeId};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{ClusterState, Command, MemberStatus, Refusal, Release};
use annulus_core::version::Speaks;
use tokio::time::Instant;

use super::*;
use annulus_cluster::{JoinError, ProposeError, TokenError, View};
use annulus_data_dir::JoinIntent;
use annulus_transport::ConnectError;

mod authority;
mod joining;
mod not_ready;

mod planned;
mod strangers;

/// Far above the duration of any step.
const LIMIT: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + LIMIT
}

/// One life of a node, as seen from outside.
struct Life {
    cluster: Cluster,
    joiner: Joiner,
    router: Arc<Router>,
    exit: ExitSwitch,
    address: SocketAddr,
}

/// The life of a node that a test looks at. It keeps the node's databases open.
struct Current(Option<Life>);

impl std::ops::Deref for Current {
    type Target = Life;

    fn deref(&self) -> &Life {
        self.0.as_ref().expect("the node is between two lives")
    }
}

/// A node that runs through its lives on a separate thread.
struct Running {
    lives: mpsc::Receiver<Life>,
    thread: Option<JoinHandle<Result<StopReason, StartError>>>,
    config: NodeConfig,
    life: Current,
}

impl Running {
    fn start(config: NodeConfig) -> Self {
        let (sender, lives) = mpsc::channel();
        let node_config = config.clone();
        let thread = std::thread::spawn(move || {
            run(node_config, |node| {
                let life = Life {
                    cluster: node.cluster().clone(),
                    joiner: node.joiner().clone(),
                    router: node.router().clone(),
                    exit: node.exit().clone(),
                    address: node.config().listen,
                };
                let _ = sender.send(life);
            })
        });
        match lives.recv_timeout(LIMIT) {
            Ok(life) => {
                let config = NodeConfig { listen: life.address, ..config };
                Self { lives, thread: Some(thread), config, life: Current(Some(life)) }
            }
            Err(_) => panic!("the node does not start: {:?}", thread.join()),
        }
    }

    fn new_life(&mut self) {
        // The next life waits until the databases of this one are closed.
        self.life.0 = None;
        match self.lives.recv_timeout(LIMIT) {
            Ok(life) => self.life.0 = Some(life),
            Err(error) => panic!("no new life ({error}): {:?}", self.thread.take().map(JoinHandle::join)),
        }
    }

    fn view(&self) -> Arc<View> {
        self.life.cluster.view()
    }

    /// Wait for the node to end by itself.
    fn end(mut self) -> (Result<StopReason, StartError>, NodeConfig) {
        let ended = self.lives.recv_timeout(LIMIT).map(|_| "another life");
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
        (self.thread.take().unwrap().join().unwrap(), self.config.clone())
    }

    fn stop(self) -> NodeConfig {
        self.life.exit.throw(Exit::Stop(StopReason::Asked));
        let (reason, config) = self.end();
        assert_eq!(reason.unwrap(), StopReason::Asked);
        config
    }

    fn see(&self, what: &str, condition: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
        let mut views = self.life.cluster.watch();
        let seen = block(async {
            tokio::time::timeout(LIMIT, views.wait_for(condition)).await.map(|view| view.unwrap().clone())
        });
        seen.unwrap_or_else(|_| panic!("never {what}: {:?}", self.view().state.members))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(life) = &self.life.0 {
            life.exit.throw(Exit::Stop(StopReason::Asked));
        }
    }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

struct Dirs(tempfile::TempDir);

impl Dirs {
    fn new() -> Self {
        let level = tracing::Level::ERROR;
        let _ = tracing_subscriber::fmt().with_max_level(level).with_test_writer().try_init();
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self, name: &str) -> NodeConfig {
        NodeConfig {
            name: format!("{name}@127.0.0.1"),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            advertise_name: None,
            seeds: Vec::new(),
            http: "127.0.0.1:0".into(),
            data: self.0.path().join(name),
            ring_size: Some(RingSize::try_from(16).unwrap()),
            zone: None,
            weight: None,
            compiler: None,
            guest_memory: None,
            disk_reserve: 0,
            speaks: Speaks::THIS,
        }
    }

    fn start(&self, name: &str) -> Running {
        Running::start(self.config(name))
    }
}

fn token(of: &Running) -> String {
    block(of.life.cluster.issue_token(LIMIT, soon())).unwrap().to_string()
}

fn try_join(node: &Running, to: &Running, token: &str) -> Result<JoinAccepted, JoinError> {
    block(node.life.joiner.join(to.life.address, token, false, soon()))
}

fn join(node: &mut Running, to: &Running) {
    drop(try_join(node, to, &token(to)).unwrap());
    node.new_life();
    let me = node.life.cluster.me();
    node.see("a member", |view| view.member(me).is_some_and(|me| me.status == MemberStatus::Member));
}

/// Wait until the nodes have completed their transfers.
fn settle(node: &Running) {
    node.see("settled", |view| view.state.is_balanced() && view.state.ring.transfers().next().is_none());
}

/// Move the partitions of a node that is down to other nodes, as `remove` does.
fn give_away(node: &Running) {
    let until = soon();
    loop {
        let transfers: Vec<_> = node.view().state.ring.transfers().map(|(id, t)| (id, t.id)).collect();
        if transfers.is_empty() && node.view().state.is_balanced() {
            return;
        }
        assert!(Instant::now() < until);
        if transfers.is_empty() {
            node.see("a new table", |view| {
                view.state.ring.transfers().next().is_some() || view.state.is_balanced()
            });
            continue;
        }
        let (index, _) = block(node.life.cluster.propose(Command::Flip { transfers }, soon())).unwrap();
        block(node.life.cluster.wait_applied(index, soon())).unwrap();
    }
}

fn owned(state: &ClusterState, node: NodeId) -> usize {
    state.ring.owned_by(node).count()
}

fn three(dirs: &Dirs) -> [Running; 3] {
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    let mut third = dirs.start("c");
    join(&mut second, &first);
    join(&mut third, &second);
    settle(&first);
    for node in [&first, &second, &third] {
        node.see("balanced over three", |view| {
            view.state.live_members().count() == 3
                && view.state.is_balanced()
                && view.state.ring.transfers().next().is_none()
        });
    }
    first.see_voters(3);
    [first, second, third]
}

impl Running {
    /// Poll Raft's membership, which is not part of the view.
    fn see_voters(&self, count: usize) {
        let until = soon();
        let settled = || {
            let group = self.life.cluster.raft_members();
            group.voters.len() == count && !group.changing
        };
        while !settled() {
            assert!(Instant::now() < until, "{:?}", self.life.cluster.raft_members());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Run a node that discovers its removal, at its start or from its peers.
fn assert_removed(config: NodeConfig) {
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(run(config, |_| {})));
    let ended = ended.recv_timeout(LIMIT).unwrap();
    assert!(matches!(ended, Err(StartError::Removed(_)) | Ok(StopReason::Removed)), "{ended:?}");
}

fn deploy(name: &str) -> Command {
    let release = Release {
        version: 0,
        digest: Digest([1; 32]),
        bytes: 1,
        description: vec![0xa0],
        config: None,
        call_ms: None,
    };
    Command::Deploy {
        name: name.into(),
        n: None,
        r: None,
        w: None,
        sloppy: None,
        storage: None,
        config: None,
        release,
        base_version: 0,
    }
}

#[test]
fn a_single_node_works_at_once_and_is_the_same_after_a_restart() {
    let dirs = Dirs::new();
    let node = dirs.start("a");
    let before = node.view();
    assert!(before.serves());
    assert_eq!(owned(&before.state, NodeId(0)), 16);
    assert!(node.life.cluster.heard_from_leader_within(Duration::from_secs(1)));
    block(node.life.cluster.propose(deploy("kv"), soon())).unwrap();
    assert!(node.view().module("kv").is_some(), "a leader's answer comes after its own state");
    let state = node.view().state.clone();
    let config = node.stop();
    let admin = annulus_data_dir::AdminToml::read(&config.data).unwrap().unwrap();
    assert_eq!(admin.address, config.listen.to_string());

    let node = Running::start(config);
    node.see("what it was", |view| view.state == state);
    node.stop();
}

#[test]
fn three_nodes_share_the_ring_and_all_restart_to_the_same_one() {
    let dirs = Dirs::new();
    let nodes = three(&dirs);
    let state = nodes[0].view().state.clone();
    let mut shares: Vec<usize> = state.members.keys().map(|id| owned(&state, *id)).collect();
    shares.sort_unstable();
    assert_eq!(shares, [5, 5, 6]);
    assert!(state.ring.partitions.iter().all(|partition| partition.replicas.len() == 3));

    let configs = nodes.map(Running::stop);
    let nodes = configs.map(Running::start);
    for node in &nodes {
        assert_eq!(node.view().state.ring, state.ring, "the copy on disk serves at once");
    }
    // The cluster can change again.
    block(nodes[2].life.cluster.propose(deploy("kv"), soon())).unwrap();
    for node in &nodes {
        node.see("the module", |view| view.module("kv").is_some());
        assert_eq!(node.view().state.ring, state.ring);
    }
}

#[test]
fn another_leads_when_the_leader_is_gone_and_without_a_majority_nothing_changes() {
    let dirs = Dirs::new();
    let nodes = three(&dirs);
    let leader = nodes[0].life.cluster.leader().unwrap();
    let (mut gone, mut left): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| node.life.cluster.me() == leader);
    gone.pop().unwrap().stop();
    let (index, _) = block(left[0].life.cluster.propose(deploy("kv"), soon())).unwrap();
    block(left[1].life.cluster.wait_applied(index, soon())).unwrap();
    assert_ne!(left[1].life.cluster.leader(), Some(leader));

    left.pop().unwrap().stop();
    let last = &left[0];
    // A leader accepts commands until it knows that it is isolated. The outcome of these commands is unknown.
    let alone = soon();
    while last.life.cluster.heard_from_leader_within(Duration::from_secs(1)) {
        assert!(Instant::now() < alone);
        std::thread::sleep(Duration::from_millis(20));
    }
    let state = last.view().state.clone();
    let limit = Duration::from_secs(4);
    let asked = Instant::now();
    let error = block(last.life.cluster.propose(deploy("other"), asked + limit)).unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum | ProposeError::NoLeader), "{error}");
    assert!(asked.elapsed() < limit + Duration::from_secs(1));
    assert!(!last.life.cluster.heard_from_leader_within(Duration::from_secs(1)));
    assert_eq!(last.view().state, state);
}

#[test]
fn a_node_that_left_ends_by_itself_and_cannot_come_back() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let gone = second.life.cluster.me();
    // The founder, which leads or at least votes, leaves last below. This node learns of its removal from
    // another one.
    block(third.life.cluster.leave(Some("b@127.0.0.1"), soon())).unwrap();
    first.see("leaving", |view| view.member(gone).is_some_and(|m| m.status == MemberStatus::Leaving));
    settle(&first);
    let (reason, config) = second.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    let state = first.see("two left", |view| view.member(gone).is_none()).state.clone();
    assert_eq!(owned(&state, gone), 0);
    first.see_voters(1);
    assert_removed(config);

    let founder = block(first.life.cluster.leave(None, soon())).unwrap();
    third.see("leaving", |view| view.member(founder).is_some_and(|m| m.status == MemberStatus::Leaving));
    settle(&third);
    let (reason, _) = first.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    let last = third.see("one left", |view| view.state.live_members().count() == 1);
    assert_eq!(owned(&last.state, third.life.cluster.me()), 16);
    let error = block(third.life.cluster.leave(None, soon())).unwrap_err();
    assert_eq!(error, ProposeError::Refused(Refusal::LastMember));
}

#[test]
fn a_node_that_was_away_when_it_was_removed_hears_it_from_its_peers() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let gone = third.life.cluster.me();
    let config = third.stop();
    block(first.life.cluster.leave(Some("c@127.0.0.1"), soon())).unwrap();
    first.see("leaving", |view| view.member(gone).is_none_or(|m| m.status == MemberStatus::Leaving));
    give_away(&first);
    first.see("two left", |view| view.member(gone).is_none());
    drop(second);
    assert_removed(config);
}

#[test]
fn a_node_that_comes_back_elsewhere_is_found_again() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let id = third.life.cluster.me();
    let config = third.stop();
    let old = config.listen;
    // The old port stays taken, so the new one differs.
    let _taken = std::net::UdpSocket::bind(old).unwrap();
    let third = Running::start(NodeConfig { listen: "127.0.0.1:0".parse().unwrap(), ..config });
    assert_ne!(third.life.address, old);
    let address = third.life.address.to_string();
    for node in [&first, &second, &third] {
        node.see("the new address", |view| view.member(id).is_some_and(|member| member.listen == address));
    }
    assert_eq!(second.view().peer(id).unwrap().addr, third.life.address);
}

/// Peers dial the advertised address, and operators on the machine use the local one.
#[test]
fn peers_dial_the_advertised_address_and_verbs_the_local_one() {
    let dirs = Dirs::new();
    let outside = "127.0.0.1:1".parse().unwrap();
    let config = NodeConfig { advertise: Some(outside), ..dirs.config("a") };
    let node = Running::start(config.clone());
    let me = node.life.cluster.me();
    assert_eq!(node.view().member(me).unwrap().listen, outside.to_string());
    let admin = annulus_data_dir::AdminToml::read(&config.data).unwrap().unwrap();
    assert_eq!(admin.address, node.life.address.to_string());
    // The node cannot join through either of its own addresses.
    let other = dirs.start("b");
    for own in [outside, node.life.address] {
        let joined = block(node.life.joiner.join(own, &token(&other), false, soon())).map(drop);
        assert!(matches!(joined, Err(JoinError::Itself(address)) if address == own), "{joined:?}");
    }
    // A wildcard address cannot be dialled by peers; commands still find the node.
    node.stop();
    let every = NodeConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config };
    let node = Running::start(every.clone());
    let admin = annulus_data_dir::AdminToml::read(&every.data).unwrap().unwrap();
    assert_eq!(admin.address, format!("127.0.0.1:{}", node.life.address.port()));
    node.stop();
    let said = Node::start(NodeConfig { advertise: None, ..every }).err().map(|error| error.to_string());
    assert!(said.as_ref().is_some_and(|said| said.contains("--advertise")), "{said:?}");
}

#[test]
fn a_survivor_recovers_alone_restarts_as_such_and_later_nodes_adopt_its_state() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    block(first.life.cluster.propose(deploy("kv"), soon())).unwrap();
    for node in [&second, &third] {
        node.see("the module", |view| view.module("kv").is_some());
    }
    let configs = [second.stop(), third.stop()];
    let cluster = first.life.cluster.clone();
    let until = soon();
    let seen = loop {
        let seen = block(cluster.survey());
        if block(cluster.needs_recovery(&seen)) {
            break seen;
        }
        assert!(Instant::now() < until);
    };
    assert_eq!(seen.lost.len(), 2);
    assert_eq!(seen.without_owner.len(), 16 - owned(&seen.state, cluster.me()));
    let refused = block(cluster.propose(deploy("other"), soon())).unwrap_err();
    assert_eq!(refused, ProposeError::NoQuorum);
    let done = block(cluster.recover((seen.state.lineage, seen.state.applied), &seen.answered)).unwrap();
    drop(cluster);
    block(first.life.cluster.propose(deploy("other"), soon())).unwrap();

    // The recovery survives a restart.
    let first = Running::start(first.stop());
    first.see("the new lineage", |view| view.state.lineage == done.lineage && view.module("other").is_some());
    block(first.life.cluster.propose(deploy("third"), soon())).unwrap();
    assert!(first.view().module("kv").is_some());

    let late = configs.map(Running::start);
    for node in &late {
        node.see("what was agreed on without it", |view| {
            view.state.lineage == done.lineage && view.module("third").is_some() && view.serves()
        });
    }
    first.see_voters(3);
    block(late[1].life.cluster.propose(deploy("fourth"), soon())).unwrap();
    // Everything is on disk, so the node that starts first has the current state.
    let [second, third] = late;
    let config = second.stop();
    drop(third);
    let identity = DataDir::lock(&config.data).unwrap().identity(&config.name).unwrap().unwrap();
    assert_eq!(identity.lineage, done.lineage);
}
