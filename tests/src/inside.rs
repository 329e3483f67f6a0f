//! Whole nodes in this process: real transport, disks and guests, without the command line.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use annulus::cluster::{Cluster, View};
use annulus::modules::{DeployRequest, Deployed};
use annulus::node::{Exit, ExitSwitch, Joiner, NodeConfig, Services, StartError, StopReason, run};
use annulus::request::{CallRequest, CoverageEvent, RequestError};
use annulus_core::ids::RequestId;
use annulus_core::keyspace::RingSize;
use annulus_core::version::Speaks;
use ciborium::Value;
use std::sync::Arc;
use tokio::time::Instant;

/// Nothing that a test waits for takes as long.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One life of a node, as others see it.
#[derive(Clone)]
pub struct Life {
    /// Control plane.
    pub cluster: Cluster,
    /// Modules, vnodes, handoff, requests.
    pub services: Services,
    /// To join by.
    pub joiner: Joiner,
    /// To end it by.
    pub exit: ExitSwitch,
    /// Where it listens.
    pub address: std::net::SocketAddr,
}

/// A node that runs through its lives on a thread of its own.
pub struct InsideNode {
    lives: mpsc::Receiver<Life>,
    thread: Option<JoinHandle<Result<StopReason, StartError>>>,
    /// Its present life; none between two.
    life: Option<Life>,
    /// What it was started with.
    pub config: NodeConfig,
}

impl InsideNode {
    /// Starts a node in a directory.
    ///
    /// # Panics
    /// If it does not start.
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
            speaks: Speaks::THIS,
        };
        Self::start_with(config)
    }

    /// Starts a node.
    ///
    /// # Panics
    /// If it does not start.
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

    /// Its present life.
    ///
    /// # Panics
    /// If a join left it without one.
    pub fn life(&self) -> &Life {
        self.life.as_ref().expect("the node has ended")
    }

    /// Joins the cluster that `member` belongs to, and waits until it has moved in.
    ///
    /// # Panics
    /// If it cannot.
    pub async fn join(&mut self, member: &InsideNode) {
        let deadline = Instant::now() + LIMIT;
        let token = member.life().cluster.issue_token(LIMIT, deadline).await.expect("a token").to_string();
        let accepted =
            self.life().joiner.join(member.life().address, &token, false, deadline).await.expect("a join");
        // A life holds the database, which the next one opens.
        self.life = None;
        drop(accepted);
        self.life = tokio::task::block_in_place(|| self.lives.recv_timeout(LIMIT)).ok();
    }

    /// Waits for its next life: a join that somebody else asked for ends the present one.
    ///
    /// # Panics
    /// If there is none in time.
    pub async fn reborn(&mut self) {
        // A life holds the database, which the next one opens.
        self.life = None;
        self.life = tokio::task::block_in_place(|| self.lives.recv_timeout(LIMIT)).ok();
        assert!(self.life.is_some(), "{} has no next life", self.config.name);
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// If it ends in an error.
    pub fn stop(mut self) {
        self.life().exit.throw(Exit::Stop(StopReason::Asked));
        let thread = self.thread.take().expect("it runs");
        drop(self);
        thread.join().expect("no panic").expect("an orderly end");
    }

    /// Calls a command with named arguments.
    ///
    /// # Errors
    /// As the request fails.
    pub async fn call(
        &self,
        module: &str,
        command: &str,
        args: &[(&str, Value)],
    ) -> Result<Value, RequestError> {
        let answer = self.life().services.coordinator.call(&request(module, command, args)).await?;
        Ok(ciborium::from_reader(&answer[..]).expect("CBOR"))
    }

    /// Runs a command everywhere; every value, and which partitions are missing.
    ///
    /// # Panics
    /// If the command does not go everywhere.
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
        panic!("coverage ended without its end");
    }

    /// Deploys a component under its own name.
    ///
    /// # Panics
    /// If it cannot be deployed.
    pub async fn deploy(&self, component: Vec<u8>) -> Deployed {
        let request = DeployRequest { component: component.into(), ..DeployRequest::default() };
        let (progress, _) = tokio::sync::mpsc::unbounded_channel();
        self.life().services.modules.deploy(request, progress).await.expect("a deploy")
    }

    /// Waits until the view fits.
    ///
    /// # Panics
    /// If it never does.
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

/// How many partitions each node owns, in order of ids.
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
        deadline: Instant::now() + Duration::from_secs(5),
        id: RequestId(rand::random()),
    }
}
