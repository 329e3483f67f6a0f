//! Reports to the oracles: each command that a guest runs, each guest that ends early, each cluster state that a
//! node publishes, and each end of a node.

use std::sync::Arc;

use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use annulus_ground::{Scope, spawn};
use annulus_harness::guest::{Fall, Keeps, Observer, Outcome, Run as Ran};
use annulus_harness::{At, Attendant};
use annulus_node::Life;
use annulus_vnode::{Ran as RanOf, WatchedVnode, Watcher};
use annulus_wasm::Effect as Does;
use ciborium::Value;

use crate::oracle::truth::{Effect, Op};
use crate::replicated;
use crate::run::Run;

/// Observes guests, vnodes and nodes for the oracles of a run.
pub struct Eyes(pub Arc<Run>);

impl Eyes {
    fn at(&self) -> Option<At> {
        Scope::current().and_then(|scope| self.0.nodes().at(scope.id()))
    }
}

impl Observer for Eyes {
    fn ran(&self, ran: &Ran<'_>) {
        // Clients check what replicas answer: several of them run the commands of a key.
        if &*ran.at.module == replicated::NAME {
            return;
        }
        let Some(at) = self.at() else { return };
        let found = match ran.outcome {
            Outcome::Reply(value) => number(value),
            // The host rejects the outcome, but a guest that keeps its own items has already changed them.
            Outcome::Doomed if ran.keeps == Keeps::Guest => None,
            Outcome::Page(_) | Outcome::Refused | Outcome::Doomed | Outcome::Trapped => return,
        };
        let Ok(partition) = u16::try_from(ran.at.partition.id).map(PartitionId) else { return };
        let op = Op::from_be_bytes(ran.id.0[8..].try_into().unwrap_or_default());
        let (era, now) = (self.0.era(at, &ran.at.module, ran.release), self.0.world.now());
        let (module, command, actor) = (&ran.at.module, ran.command, ran.at.actor);
        self.0.serves(
            at,
            (ModuleUid(era), partition),
            format_args!("{command} of {module}, #{op}, by {actor:x}"),
        );
        if !ran.writes.is_empty() {
            self.0.writes(&ran.at.module, ran.release, ran.at.write_format);
        }
        if matches!(ran.outcome, Outcome::Doomed) && ran.writes.is_empty() {
            return;
        }
        self.0.truth(|truth| truth.effect(Effect { op, partition, found, era, now }));
    }

    fn is_calm(&self) -> bool {
        self.0.is_calm()
    }

    fn fell(&self, fall: &Fall<'_>) {
        self.0.seen(|seen| seen.falls += 1);
        let Some(at) = self.at() else { return };
        let Ok(partition) = u16::try_from(fall.at.partition.id).map(PartitionId) else { return };
        let now = self.0.world.now();
        self.0.moves(|moves| moves.fell(at, partition, &fall.at.module, now));
        if fall.keeps == Keeps::Guest && self.0.may_hold(at, partition) {
            self.0.loosen(partition, Some(&fall.at.module));
        }
    }
}

/// Real components cannot report by themselves: their vnodes report each command right after it, before the guest
/// is called again.
impl Watcher for Eyes {
    fn ran(&self, ran: &RanOf<'_>) {
        let Some(at) = self.at() else { return };
        let vnode = ran.vnode;
        let op = Op::from_be_bytes(ran.id.0[8..].try_into().unwrap_or_default());
        let (command, module) = (&ran.info.name, vnode.name);
        self.0.serves(at, (vnode.module, vnode.partition), format_args!("{command} of {module}, #{op}"));
        if ran.reply.is_none() && ran.info.effect == Does::Read {
            return;
        }
        let found = ran.reply.and_then(|reply| number(&ciborium::from_reader(reply).ok()?));
        let (era, now) = (vnode.module.0, self.0.world.now());
        self.0.truth(|truth| truth.effect(Effect { op, partition: vnode.partition, found, era, now }));
    }

    fn lost(&self, vnode: &WatchedVnode<'_>) {
        self.0.seen(|seen| seen.falls += 1);
        if self.at().is_some_and(|at| self.0.may_hold(at, vnode.partition)) {
            self.0.loosen(vnode.partition, Some(vnode.name));
        }
    }
}

/// Return the number that a client put. A value may be an array of the number and padding.
fn number(value: &Value) -> Option<u64> {
    let value = value.as_array().and_then(|array| array.first()).unwrap_or(value);
    value.as_integer().and_then(|value| u64::try_from(value).ok())
}

impl Attendant for Eyes {
    fn serves(&self, at: At, life: &Arc<Life>) {
        let (run, name, mut views) = (self.0.clone(), self.0.nodes().name(at), life.cluster().watch());
        drop(spawn(async move {
            loop {
                let view = views.borrow_and_update().clone();
                run.shows(&name, &view.state);
                if views.changed().await.is_err() {
                    return;
                }
            }
        }));
    }

    fn is_over(&self, at: At) {
        let now = self.0.world.now();
        self.0.moves(|moves| moves.over(at, now));
        self.0.loses_memory(at);
    }
}
