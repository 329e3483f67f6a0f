//! Carries out the effects of the sender machine.

use std::time::Duration;

use annulus_core::handoff::pacing::{self, PageRequest, is_busy};
use annulus_core::handoff::sender::{Effect, Event};
use annulus_core::mutants::{self, Mutant};
use annulus_core::ring::Fate;
use annulus_core::state::{Command, Outcome};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CONNECT_LIMIT, Driver};
use crate::{PROPOSE_LIMIT, link};
use annulus_cluster::{ProposeError, View};
use annulus_transport::kind;
use annulus_wasm::Limits;

impl Driver {
    pub(super) async fn carry_out(&mut self, effect: Effect) {
        let inner = &self.handoff.inner;
        match effect {
            Effect::Connect(number) => self.connect(number),
            Effect::Send(number, message) => {
                if let Some((open, link)) = &self.link
                    && *open == number
                {
                    let _ = link.send(message);
                }
            }
            Effect::Disconnect(number) => {
                self.link.take_if(|(open, _)| *open == number);
            }
            Effect::ReadPage { attempt, module, after } => {
                self.pace(pacing::Event::PageWanted(PageRequest { attempt, module, after }));
                annulus_ground::point("handoff: reads a page").await;
                self.read_if_allowed();
            }
            Effect::Seal => {
                let limit = longest_call(&inner.cluster.view());
                self.seal.ask(inner.master.vnodes(self.task.partition), limit);
            }
            Effect::ProposeFlip => {
                self.propose(Command::Flip { transfers: vec![(self.task.partition, self.task.transfer)] });
            }
            Effect::ProposeCancel => {
                self.pace(pacing::Event::Abandoned);
                if !std::mem::replace(&mut self.given_up, true) {
                    let why = self.machine.error().unwrap_or("abandoned");
                    self.handoff.note_given_up(self.task.partition, why);
                }
                self.propose(Command::Cancel {
                    partition: self.task.partition,
                    transfer: self.task.transfer,
                });
            }
            Effect::Retry => {
                let busy = is_busy(self.machine.refusal());
                self.pace(pacing::Event::Failed { busy });
            }
            Effect::Finish(fate) => {
                self.pace(pacing::Event::Abandoned);
                let inner = &self.handoff.inner;
                if fate == Fate::Flipped {
                    inner.given_up.lock().remove(&self.task.partition);
                }
                let (partition, transfer) = (self.task.partition, self.task.transfer);
                inner.master.end_outgoing(partition, transfer, fate == Fate::Flipped);
                if fate == Fate::Cancelled {
                    inner.master.unseal(partition, transfer);
                }
                // After a crash in between, the node must find either a ring in which the transfer is over, or the
                // seal.
                inner.cluster.keep_view();
                annulus_ground::point("handoff: is over, and its mark is there").await;
                inner.seals.remove(partition, transfer);
            }
        }
    }

    fn connect(&mut self, number: u64) {
        let (opened, later) = (self.later.clone(), self.later.clone());
        self.progress.tries();
        let Some(peer) = self.handoff.inner.cluster.view().peer(self.successor) else {
            self.progress.fail("the receiver has no address");
            return drop(opened.send(Event::Disconnected(number)));
        };
        // The messages wait in this channel until the stream is open. Bounded by the machine: until then it only sends
        // `Begin`, then it reads up to `Limits::window_bytes` ahead of the acknowledgements.
        let (sender, mut waiting) = mpsc::unbounded_channel();
        self.link = Some((number, sender));
        let transport = self.handoff.inner.transport.clone();
        let progress = self.progress.clone();
        // The task ends if the stream cannot be opened in time, or when the driver drops its end of the channel.
        let handoff = self.handoff.clone();
        self.handoff.inner.tasks.spawn(async move {
            let deadline = Instant::now() + CONNECT_LIMIT;
            let stream = match transport.open_bulk(&peer, kind::BULK_HANDOFF, Bytes::new(), deadline).await {
                Ok(stream) => stream,
                Err(error) => {
                    progress.fail(&error.to_string());
                    return drop(opened.send(Event::Disconnected(number)));
                }
            };
            let _ = opened.send(Event::Connected(number));
            let received = move |message| drop(opened.send(Event::Received(number, message)));
            let ended = move |why: Option<String>| {
                if let Some(why) = why {
                    progress.fail(&why);
                }
                let _ = later.send(Event::Disconnected(number));
            };
            let link = link::run(&handoff.inner.tasks, stream, received, ended);
            while let Some(message) = waiting.recv().await {
                if link.send(message).is_err() {
                    return;
                }
            }
        });
    }

    /// Propose a command. The driver learns of its success from the log.
    fn propose(&self, command: Command) {
        let (cluster, later, progress) =
            (self.handoff.inner.cluster.clone(), self.later.clone(), self.progress.clone());
        let (partition, transfer) = (self.task.partition, self.task.transfer);
        let assumes = mutants::on(Mutant::AssumeNotFlipped).then(|| self.handoff.inner.clone());
        // The task ends within `PROPOSE_LIMIT`.
        self.handoff.inner.tasks.spawn(async move {
            annulus_ground::point("handoff: proposes").await;
            let proposed = cluster.propose(command, Instant::now() + PROPOSE_LIMIT).await;
            if let (Some(inner), Err(ProposeError::Unknown)) = (assumes, &proposed) {
                inner.master.unseal(partition, transfer);
                inner.seals.remove(partition, transfer);
            }
            let failed = match proposed {
                Ok((_, Outcome::Flipped(done))) if done.is_empty() => Some("the flip was refused".to_owned()),
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = failed {
                progress.fail(&reason);
                let _ = later.send(Event::NotProposed);
            }
        });
    }
}

/// Return the longest call limit of all modules.
fn longest_call(view: &View) -> Duration {
    let own = view.state.modules.values().filter_map(|module| module.current.call_ms);
    own.map(Duration::from_millis).fold(Limits::default().call_time, Duration::max)
}
