//! Two more modules beside the one under load: one whose guest traps now and then, one with items of some
//! mebibytes. What befalls them must not touch the others, and each loses only what it was told of.

mod client;
mod kind;
mod report;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::harness::Node;
use crate::load::caller::{Caller, Frozen};
use crate::load::crew::{Crew, Order, Whom};
use crate::load::{MODULE, Settings};
use client::Client;
pub use kind::Kind;
pub use report::Report;

/// The guest of both modules.
pub(super) const GUEST: &str = "tests/guests/hostile";
/// Of each module. Each client has the partitions to itself whose number leaves its own.
const CLIENTS: u32 = 4;

/// All modules of a run, the one under load among them.
pub(super) fn modules() -> impl Iterator<Item = &'static str> {
    std::iter::once(MODULE).chain(Kind::ALL.iter().map(|kind| kind.module()))
}

/// The clients of both modules. They end when it is dropped.
pub(super) struct Beside {
    clients: Whom,
    crew: Crew,
    reports: Vec<Arc<Mutex<Report>>>,
}

impl Beside {
    /// Clients that enter by these nodes, and do nothing yet. Who is frozen is told to the load.
    pub(super) fn new(settings: &Settings, frozen: &Frozen, nodes: &[&Node]) -> Self {
        let (crew, mut clients, mut reports) = (Crew::new(), Whom::new(), Vec::new());
        for kind in Kind::ALL {
            let report = Arc::new(Mutex::new(Report::new(kind, Instant::now())));
            for number in 0..CLIENTS {
                let caller = Caller::new(frozen.clone(), settings);
                let client =
                    Client::new(kind, number, settings.seed, settings.ring_size, caller, report.clone());
                crew.hire(&mut clients, |told| client.run(told));
            }
            reports.push(report);
        }
        let beside = Self { clients, crew, reports };
        beside.enter(nodes);
        beside
    }

    /// Sends the clients to these nodes.
    pub(super) fn enter(&self, nodes: &[&Node]) {
        let nodes: Vec<PathBuf> = nodes.iter().map(|node| node.data.clone()).collect();
        self.crew.tell(&self.clients, &Order::Enter(nodes));
    }

    /// Puts every key once, and goes on with a mix of everything.
    pub(super) fn go(&self, began: Instant) {
        self.reports.iter().for_each(|report| report.lock().began = Some(began));
        self.crew.tell(&self.clients, &Order::Fill);
        self.crew.tell(&self.clients, &Order::Run(true));
    }

    /// What these partitions held may be gone.
    pub(super) fn doubt(&self, partitions: HashSet<u16>) {
        self.crew.tell(&self.clients, &Order::Doubt(Arc::new(partitions)));
    }

    /// Ends it, and reads everything back.
    pub(super) fn verify(&self) -> Vec<Report> {
        self.crew.tell(&self.clients, &Order::Run(false));
        self.crew.tell(&self.clients, &Order::ReadBack);
        self.reports()
    }

    /// What was seen so far.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.reports.iter().map(|report| report.lock().clone()).collect()
    }
}
