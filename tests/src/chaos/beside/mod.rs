//! Two modules that run beside the one under load: the guest of one traps occasionally, and the items of the
//! other have 1 to 8 MiB. Their faults must not affect other modules, and each may lose only items that an
//! error names as lost.

mod client;
mod kind;
mod report;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::harness::Node;
use crate::load::Settings;
use crate::load::caller::{Caller, Frozen};
use crate::load::crew::{Crew, Order, Whom};
use client::Client;
pub use kind::Kind;
pub use report::Report;

/// The module under load, whose guest keeps its items in memory, and its guest project.
pub(super) const MODULE: &str = "memkv";
pub(super) const LOADED: &str = "guests/memkv";
/// The guest project of both modules.
pub(super) const GUEST: &str = "tests/guests/hostile";
/// Number of clients for each module. Client `n` owns the partitions whose number modulo this is `n`.
const CLIENTS: u32 = 4;

/// Return the names of all modules of a run, including the one under load.
pub(super) fn modules() -> impl Iterator<Item = &'static str> {
    std::iter::once(MODULE).chain(Kind::ALL.iter().map(|kind| kind.module()))
}

/// The clients of both modules; they end when it is dropped.
pub(super) struct Beside {
    clients: Whom,
    crew: Crew,
    reports: Vec<Arc<Mutex<Report>>>,
}

impl Beside {
    /// Create clients that use these nodes and are idle at first. The load maintains the set of frozen nodes.
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

    /// Send the clients to these nodes.
    pub(super) fn enter(&self, nodes: &[&Node]) {
        let nodes: Vec<PathBuf> = nodes.iter().map(|node| node.data.clone()).collect();
        self.crew.tell(&self.clients, &Order::Enter(nodes));
    }

    /// Put every key once, then start the mix of all commands.
    pub(super) fn go(&self, began: Instant) {
        self.reports.iter().for_each(|report| report.lock().began = Some(began));
        self.crew.tell(&self.clients, &Order::Fill);
        self.crew.tell(&self.clients, &Order::Run(true));
    }

    /// Expect that the items of these partitions may be lost.
    pub(super) fn doubt(&self, partitions: HashSet<u16>) {
        self.crew.tell(&self.clients, &Order::Doubt(Arc::new(partitions)));
    }

    /// Stop the mix, read every key back and return the reports.
    pub(super) fn verify(&self) -> Vec<Report> {
        self.crew.tell(&self.clients, &Order::Run(false));
        self.crew.tell(&self.clients, &Order::ReadBack);
        self.reports()
    }

    /// Return the reports so far.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.reports.iter().map(|report| report.lock().clone()).collect()
    }
}
