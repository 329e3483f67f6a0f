//! The commands of a vnode.

use annulus_core::description::{CommandInfo, Effect, Route};
use annulus_core::ids::RequestId;
use annulus_core::item::{Budget, Item};
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, GuestRefusal, Request, RequestError};
use annulus_core::wire::PageAnswer;
use annulus_core::wire::replica::MAX_REPLICATED_BYTES;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Actor;
use crate::guest::Guest;
use crate::mailbox::{Command, CoveragePage};
use crate::memory;
use crate::runtime::CommandResult;
use crate::watch::Ran;
use annulus_storage::Scope;
use annulus_wasm::{CommandFailure, GuestError};

impl Actor {
    /// Run a command and answer it.
    pub(super) async fn command(&mut self, command: Command) {
        debug_assert!(!self.sealed, "a sealed vnode runs no commands");
        let Command { mut request, page, id, deadline, reply } = command;
        // A command that is not routed by a key has none, whatever the caller sent.
        let info = self.release.description.command(&request.command);
        if !info.is_some_and(|info| matches!(info.route, Route::ByParam(_))) {
            request.key = None;
        }
        let mut reply = Some(reply);
        if mutants::on(Mutant::AckEarly)
            && let Some(reply) = reply.take()
        {
            reply.send(Ok(Bytes::new()));
            tokio::task::yield_now().await;
        }
        // An error of the host itself tells of no items.
        let mut saw = Scope::Nothing;
        let answer = if Instant::now() >= deadline && !mutants::on(Mutant::DeadlineNotChecked) {
            Err(RequestError::not_applied(
                ErrorCode::DeadlineExceeded,
                "the deadline came while the command waited for its vnode",
            ))
        } else if !self.complete && !mutants::on(Mutant::BuildingAnswers) {
            Err(RequestError::not_applied(
                ErrorCode::NotReady,
                "the items of this replica are being built from the others; ask another one",
            ))
        } else {
            match page {
                None => self.run_command(&request, id, &mut saw).await,
                Some(page) => self.run_coverage(&request, id, page, &mut saw).await,
            }
        };
        if let Some(mut reply) = reply {
            self.tell_ran(&mut reply, request.key.as_deref(), &answer).await;
            self.parked.answer(&self.items, saw, reply, answer);
        }
    }

    /// Run a command. `saw` becomes the scope of the items that the answer, even if it is an error, may tell of: the
    /// answer waits for their batches (R11) and for no others. A guest also remembers earlier calls in its memory.
    /// That is no item and ends with the instance, so no answer waits for it.
    async fn run_command<'a>(
        &mut self,
        request: &'a Request,
        id: RequestId,
        saw: &mut Scope<'a>,
    ) -> Result<Bytes, RequestError> {
        let release = self.release.clone();
        let info = release.description.command(&request.command).ok_or_else(unknown_command)?;
        match (&info.route, &request.key) {
            (Route::Everywhere, _) => return Err(misrouted("goes everywhere")),
            (Route::ByParam(param), None) => return Err(misrouted(&format!("needs the key `{param}`"))),
            (Route::ByParam(_), Some(_)) | (Route::Anywhere, _) => {}
        }
        self.check_space(info)?;
        // `init` and the callbacks that a check calls may read any item, and a refusal may tell of it.
        *saw = Scope::All;
        self.check_handoff(request).await?;
        self.check_memory(info).await?;
        let guest = self.guest().await?;
        // The imports of the guest keep it to its key. A command that runs anywhere has no items.
        *saw = request.key.as_deref().map_or(Scope::Nothing, Scope::Key);
        let called = guest.command(info, halves(id), request).await;
        let kept = self.guest.as_ref().is_some_and(Guest::keeps_items);
        if kept {
            self.report(info, id, &called);
        }
        let settled = self.settle(info, called, request.key.as_deref(), |_| &[]).await;
        if let Ok(reply) = &settled
            && !kept
        {
            self.watched(|watcher, vnode| watcher.ran(&Ran { vnode, info, id, reply: Some(reply) }));
        }
        settled.map(Bytes::from)
    }

    /// Run a page of a coverage command. `saw` is as for a command.
    ///
    /// The answer waits for every batch of the vnode. To wait only for those of the keys that the page has read, each
    /// import would have to record its range; and it would gain little, because one sync covers all that waits for it.
    async fn run_coverage(
        &mut self,
        request: &Request,
        id: RequestId,
        page: CoveragePage,
        saw: &mut Scope<'_>,
    ) -> Result<Bytes, RequestError> {
        let release = self.release.clone();
        let info = release.description.command(&request.command).ok_or_else(unknown_command)?;
        if info.route != Route::Everywhere {
            return Err(misrouted("does not go everywhere"));
        }
        self.check_space(info)?;
        *saw = Scope::All;
        self.check_handoff(request).await?;
        self.check_memory(info).await?;
        let limit = Budget { items: page.items, bytes: page.bytes };
        let called =
            self.guest().await?.coverage(info, halves(id), request, page.after.as_deref(), limit).await;
        let answer = self.settle(info, called, None, |values| &values.touched).await?;
        Ok(PageAnswer::new(answer.values, answer.next).encode().into())
    }

    /// Refuse a command that the module does not run during a handoff.
    async fn check_handoff(&mut self, request: &Request) -> Result<(), RequestError> {
        if self.outgoing.is_none() || !self.release.description.exported.transfer {
            return Ok(());
        }
        let guest = self.guest().await?;
        match guest.handles_in_handoff(request).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(RequestError::not_applied(
                ErrorCode::HandoffInProgress,
                "the module refuses this command while it hands off; try again",
            )),
            Err(error) => Err(self.failed(error, None)),
        }
    }

    /// Refuse a command whose writes may exceed the guest's memory limit. A refused command changes nothing.
    async fn check_memory(&mut self, info: &CommandInfo) -> Result<(), RequestError> {
        if info.effect == Effect::Read || info.frees {
            return Ok(());
        }
        let guest = self.guest().await?;
        let Some((used, limit)) = guest.memory() else { return Ok(()) };
        let node = guest.node_memory().filter(|(used, limit)| memory::is_scarce(*used, *limit));
        if !memory::is_full(used, limit) && node.is_none() {
            return Ok(());
        }
        if self.swap.is_none() && self.outgoing.is_none() && self.compaction.may_help() {
            // The report of this swap has no receiver.
            let (answer, _) = oneshot::channel();
            self.start_swap(self.release.clone(), answer).await;
        }
        Err(match node {
            Some((used, limit)) => memory::scarce_error(used, limit),
            None => memory::full_error(self.partition.id, used, limit),
        })
    }

    /// Commit the result of a call and forward its writes.
    ///
    /// A doomed call changes nothing in host storage. A guest that keeps its items may still have changed them: the
    /// items of the touched keys are forwarded, and the caller learns that the outcome is unknown. `touched` returns
    /// the keys besides `key` that the call changed.
    async fn settle<T>(
        &mut self,
        info: &CommandInfo,
        called: Result<CommandResult<T>, GuestError>,
        key: Option<&[u8]>,
        touched: fn(&T) -> &[Vec<u8>],
    ) -> Result<T, RequestError> {
        let writes = info.effect != Effect::Read;
        if called.is_ok() && writes {
            if let Err(reason) = self.got_items().await {
                self.forget_writes(reason.clone());
                return Err(RequestError::not_applied(ErrorCode::StorageFull, reason));
            }
            if info.frees {
                self.compaction.freed();
            }
        }
        let answer = match called {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => {
                self.recovered();
                return Err(refusal(failure));
            }
            Err(error) => return Err(self.failed(error, None)),
        };
        let touched = || key.into_iter().chain(touched(&answer.value).iter().map(Vec::as_slice));
        if let Some(doom) = answer.doom {
            let keeps = self.guest.as_ref().is_some_and(Guest::keeps_items);
            let error = self.failed(GuestError::Doomed(doom), None);
            if !writes || !keeps {
                return Err(error);
            }
            self.forward(Vec::new(), touched()).await?;
            return Err(RequestError::unknown(error.code, error.message));
        }
        // A copy of the writes is needed only if the items move.
        let moving = writes && (self.outgoing.is_some() || self.swap.is_some());
        let written = if moving { answer.writes.clone() } else { Vec::new() };
        let replicated = if self.is_replicated() { answer.writes.clone() } else { Vec::new() };
        if replicated.iter().map(Item::len).sum::<usize>() > MAX_REPLICATED_BYTES {
            let reason = format!(
                "the command writes more than {MAX_REPLICATED_BYTES} bytes, the limit of a module with several replicas"
            );
            self.forget_writes(reason.clone());
            return Err(RequestError::not_applied(ErrorCode::ValueTooLarge, reason));
        }
        if let Err(error) = self.guest().await?.commit(answer.writes).await {
            return Err(self.not_committed(&error));
        }
        self.written = replicated;
        self.recovered();
        if writes {
            self.forward(written, touched()).await?;
        }
        Ok(answer.value)
    }

    /// Forward the items of a write to wherever this vnode's items move: into the stream of a handoff, and to the new
    /// instance of a swap. `written` are the items in host storage; a guest that keeps its items is asked for those of
    /// `keys`.
    async fn forward<'a>(
        &mut self,
        written: Vec<Item>,
        keys: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), RequestError> {
        self.sweep.wrote();
        if self.outgoing.is_none() && self.swap.is_none() {
            return Ok(());
        }
        let mut items = written;
        let guest = self.guest().await?;
        if guest.keeps_items() {
            for key in keys {
                match guest.items_of(key).await {
                    Ok(of_key) => items.extend(of_key),
                    Err(error) => {
                        let error = self.failed(error, None);
                        return Err(RequestError::unknown(error.code, error.message));
                    }
                }
            }
        }
        if self.swap.is_some() {
            self.forward_to_handoff(items.clone());
            self.forward_to_swap(items).await;
        } else {
            self.forward_to_handoff(items);
        }
        Ok(())
    }

    /// Report a command to the watcher whose changes are in the guest's memory, even if the call is doomed.
    fn report(&self, info: &CommandInfo, id: RequestId, called: &Result<CommandResult<Vec<u8>>, GuestError>) {
        let Ok(Ok(answer)) = called else { return };
        self.watched(|watcher, vnode| {
            let reply = answer.doom.is_none().then_some(&answer.value[..]);
            watcher.ran(&Ran { vnode, info, id, reply });
        });
    }
}

/// Return a request id as the two numbers that a guest gets.
fn halves(id: RequestId) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let (high, low) = id.0.split_at(8);
    (number(high), number(low))
}

fn unknown_command() -> RequestError {
    RequestError::not_applied(
        ErrorCode::UnknownCommand,
        "the module has no such command; `annulus call MODULE` lists them",
    )
}

fn misrouted(what: &str) -> RequestError {
    RequestError::not_applied(ErrorCode::BadArguments, format!("the command {what}"))
}

fn refusal(failure: CommandFailure) -> RequestError {
    match failure {
        CommandFailure::UnknownCommand => unknown_command(),
        CommandFailure::BadArguments(what) => RequestError::not_applied(ErrorCode::BadArguments, what),
        CommandFailure::Refused(GuestRefusal { code, message, detail }) => {
            let mut error = RequestError::not_applied(ErrorCode::Refused, message.clone());
            error.refusal = Some(GuestRefusal { code, message, detail });
            error
        }
    }
}
