//! Whole nodes inside the test process: real transport, disks and guests, without the command line.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use annulus::cluster::{Cluster, View};
use annulus::modules::{DeployRequest, Deployed};
use annulus::node::{Exit, ExitSwitch, Joiner, NodeConfig, Services, StartError, StopReason, run};
use annulus::request::{CallRequest, CoverageEvent, RequestError};
use annulus_core::ids::RequestId;
use annulus_core::keyspace::RingSize;
use annulus_core::request::Demands;
use annulus_core::version::Speaks;
use ciborium::Value;
use std::sync::Arc;
use tokio::time::Instant;

/// Longest wait of a test for a node.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Handles to one incarnation of a node; a join ends it and starts the next.
#[derive(Clone)]
pub struct Life {
    /// The control plane.
    pub cluster: Cluster,
    /// Modules, vnodes, handoff and requests.
    pub services: Services,
    /// Joins another cluster.
    pub joiner: Joiner,
    /// Ends the incarnation.
    pub exit: ExitSwitch,
    /// Address that the node listens on.
    pub address: std::net::SocketAddr,
}

/// A node that runs on its own thread, one incarnation after another.
pub struct InsideNode {
    lives: mpsc::Receiver<Life>,
    thread: Option<JoinHandle<Result<StopReason, StartError>>>,
    /// The current incarnation; `None` between two.
    life: Option<Life>,
    /// Configuration that the node was started with.
    pub config: NodeConfig,
}

impl InsideNode {
    /// Start a node with its data in `data`.
    ///
    /// # Panics
    /// If it does not start within [`LIMIT`].
    pub fn start(name: &str, data: &std::path::Path) -> Self {
        let config = NodeConfig {
            name: name.to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            advertise_name: None,
            seeds: Vec::new(),
            http: "127.0.0.1:0".to_owned(),
            data: data.to_owned(),
            ring_size: Some(RingSize::try_from(64).expect("a ring size")),
            zone: None,
            weight: None,
            compiler: None,
            guest_memory: None,
            disk_reserve: 0,
            speaks: Speaks::THIS,
        };
        Self::start_with(config)
    }

    /// Start a node with this configuration.
    ///
    /// # Panics
    /// If it does not start within [`LIMIT`].
    pub fn start_with(config: NodeConfig) -> Self {
        let (sender, lives) = mpsc::channel();
        let settings = config.clone();
        let thread = std::thread::spawn(move || {
            run(settings, |node| {
                let life = Life {
                    cluster: node.cluster().clone(),
                    services: node.services().clone(),
                    joiner: node.joiner().clone(),
                    exit: node.exit().clone(),
                    address: node.config().listen,
                };
                let _ = sender.send(life);
            })
        });
        match lives.recv_timeout(LIMIT) {
            Ok(life) => Self { lives, thread: Some(thread), life: Some(life), config },
            Err(_) => panic!("the node did not start: {:?}", thread.join()),
        }
    }

    /// Return the current incarnation.
    ///
    /// # Panics
    /// If a join has left the node without one.
    pub fn life(&self) -> &Life {
        self.life.as_ref().expect("the node has ended")
    }

    /// Join the cluster of `member` and wait for the node's next incarnation, which runs as a member.
    ///
    /// # Panics
    /// If the token or the join is refused.
    pub async fn join(&mut self, member: &InsideNode) {
        let deadline = Instant::now() + LIMIT;
        let token = member.life().cluster.issue_token(LIMIT, deadline).await.expect("a token").to_string();
        let accepted =
            self.life().joiner.join(member.life().address, &token, false, deadline).await.expect("a join");
        // The handles keep the database open, which the next incarnation opens.
        self.life = None;
        drop(accepted);
        self.life = tokio::task::block_in_place(|| self.lives.recv_timeout(LIMIT)).ok();
    }

    /// Wait for the next incarnation after a join requested elsewhere has ended the current one.
    ///
    /// # Panics
    /// If there is none within [`LIMIT`].
    pub async fn reborn(&mut self) {
        // The handles keep the database open, which the next incarnation opens.
        self.life = None;
        self.life = tokio::task::block_in_place(|| self.lives.recv_timeout(LIMIT)).ok();
        assert!(self.life.is_some(), "{} has no next incarnation", self.config.name);
    }

    /// Stop the node in order.
    ///
    /// # Panics
    /// If the node ends with an error.
    pub fn stop(mut self) {
        self.life().exit.throw(Exit::Stop(StopReason::Asked));
        let thread = self.thread.take().expect("it runs");
        drop(self);
        thread.join().expect("no panic").expect("an orderly end");
    }

    /// Run a command with named arguments.
    ///
    /// # Errors
    /// The error of the request.
    pub async fn call(
        &self,
        module: &str,
        command: &str,
        args: &[(&str, Value)],
    ) -> Result<Value, RequestError> {
        let answer = self.life().services.coordinator.call(&request(module, command, args)).await?;
        Ok(ciborium::from_reader(&answer[..]).expect("CBOR"))
    }

    /// Run a coverage command; return all values and the partitions that did not reply.
    ///
    /// # Panics
    /// If coverage cannot start, or ends without its last event.
    pub async fn everywhere(&self, module: &str, command: &str) -> (Vec<Value>, Vec<u16>) {
        let mut events =
            self.life().services.coordinator.coverage(request(module, command, &[])).expect("coverage");
        let mut values = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                CoverageEvent::Batch { values: batch, .. } => {
                    values.extend(
                        batch.iter().map(|v| ciborium::from_reader::<Value, _>(&v[..]).expect("CBOR")),
                    );
                }
                CoverageEvent::Done { missing } => {
                    return (values, missing.into_iter().map(|(partition, _)| partition.0).collect());
                }
            }
        }
        panic!("coverage ended without its last event");
    }

    /// Deploy a component under the name that it states.
    ///
    /// # Panics
    /// If the deploy fails.
    pub async fn deploy(&self, component: Vec<u8>) -> Deployed {
        let request = DeployRequest { component: component.into(), ..DeployRequest::default() };
        let (progress, _) = tokio::sync::mpsc::unbounded_channel();
        self.life().services.modules.deploy(request, progress).await.expect("a deploy")
    }

    /// Wait until the view satisfies `fits`, and return it.
    ///
    /// # Panics
    /// If it does not within [`LIMIT`]; `what` describes the expected state in the message.
    pub async fn until(&self, what: &str, mut fits: impl FnMut(&View) -> bool) -> Arc<View> {
        let mut changes = self.life().cluster.watch();
        match tokio::time::timeout(LIMIT, changes.wait_for(|view| fits(view))).await {
            Ok(Ok(view)) => view.clone(),
            _ => {
                let rows = self.life().services.handoff.transfers().await;
                panic!("never: {what}; owned {:?}; transfers: {rows:#?}", owned(&self.life().cluster.view()))
            }
        }
    }
}

/// Return the number of partitions of each owner, in the order of node ids. Nodes that own none are absent.
pub fn owned(view: &View) -> Vec<usize> {
    let mut counts = std::collections::BTreeMap::new();
    for (_, partition) in view.state.ring.iter() {
        *counts.entry(partition.owner()).or_insert(0) += 1;
    }
    counts.into_values().collect()
}

fn request(module: &str, command: &str, args: &[(&str, Value)]) -> CallRequest {
    let map = Value::Map(args.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect());
    let mut bytes = Vec::new();
    ciborium::into_writer(&map, &mut bytes).expect("plain data");
    CallRequest {
        module: module.to_owned(),
        command: command.to_owned(),
        args: bytes.into(),
        key: None,
        demands: Demands::default(),
        deadline: Instant::now() + Duration::from_secs(5),
        id: RequestId(rand::random()),
    }
}
