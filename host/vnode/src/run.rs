//! Running one command.

use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, GuestRefusal, RequestError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::actor::Actor;
use super::mailbox::{Command, PageWanted};
use annulus_wasm::{Answer, Budget, CommandFailure, CommandInfo, Effect, GuestError, Item, Request, Route};

/// One page of one partition's answer to a command that goes everywhere (CBOR on the wire).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageAnswer {
    /// CBOR, one each.
    pub values: Vec<serde_bytes::ByteBuf>,
    /// Token for the page after this; none after the last.
    pub next: Option<serde_bytes::ByteBuf>,
}

impl Actor {
    pub(super) async fn command(&mut self, command: Command) {
        let Command { mut request, page, id, deadline, reply } = command;
        // A key that a caller sends along with a command that has none is none of the guest's business.
        let info = self.behaviour.description.command(&request.command);
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
        let answer = if Instant::now() >= deadline && !mutants::on(Mutant::DeadlineNotChecked) {
            Err(RequestError::not_applied(
                ErrorCode::DeadlineExceeded,
                "the deadline came while the command waited for its vnode",
            ))
        } else {
            let (high, low) = id.0.split_at(8);
            let id = (number(high), number(low));
            match page {
                None => self.one(&request, id).await,
                Some(page) => self.page(&request, id, page).await,
            }
        };
        if let Some(reply) = reply {
            reply.send(answer);
        }
    }

    async fn one(&mut self, request: &Request, id: (u64, u64)) -> Result<Bytes, RequestError> {
        let behaviour = self.behaviour.clone();
        let info = behaviour.description.command(&request.command).ok_or_else(unknown_command)?;
        match (&info.route, &request.key) {
            (Route::Everywhere, _) => return Err(misrouted("goes everywhere")),
            (Route::ByParam(param), None) => return Err(misrouted(&format!("needs the key `{param}`"))),
            (Route::ByParam(_), Some(_)) | (Route::Anywhere, _) => {}
        }
        self.ask_in_handoff(request).await?;
        self.room_for(info).await?;
        let called = self.guest().await?.command(info, id, request).await;
        self.watch_command(info, id, &called);
        self.settle(info, called, request.key.as_slice(), |_| &[]).await.map(Bytes::from)
    }

    async fn page(
        &mut self,
        request: &Request,
        id: (u64, u64),
        page: PageWanted,
    ) -> Result<Bytes, RequestError> {
        let behaviour = self.behaviour.clone();
        let info = behaviour.description.command(&request.command).ok_or_else(unknown_command)?;
        if info.route != Route::Everywhere {
            return Err(misrouted("does not go everywhere"));
        }
        self.ask_in_handoff(request).await?;
        self.room_for(info).await?;
        let limit = Budget { items: page.items, bytes: page.bytes };
        let called = self.guest().await?.coverage(info, id, request, page.after.as_deref(), limit).await;
        let answer = self.settle(info, called, &[], |values| &values.touched).await?;
        let values = answer.values.into_iter().map(Into::into).collect();
        let page = PageAnswer { values, next: answer.next.map(Into::into) };
        let mut bytes = Vec::new();
        ciborium::into_writer(&page, &mut bytes).expect("a page is plain data and a Vec never fails");
        Ok(bytes.into())
    }

    /// Gives the module its say while it hands off.
    async fn ask_in_handoff(&mut self, request: &Request) -> Result<(), RequestError> {
        if self.outgoing.is_none() || !self.behaviour.description.exported.transfer {
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

    /// What a call comes to: its writes are committed and follow wherever the items are going. A
    /// doomed one leaves nothing in host storage; but a guest that keeps its items has done to
    /// them what it did, so those of the keys that it touched follow, and the caller is told that
    /// nobody knows.
    async fn settle<T>(
        &mut self,
        info: &CommandInfo,
        called: Result<Result<Answer<T>, CommandFailure>, GuestError>,
        key: &[Vec<u8>],
        touched: fn(&T) -> &[Vec<u8>],
    ) -> Result<T, RequestError> {
        if called.is_ok() && info.effect != Effect::Read {
            self.wrote(info).await;
        }
        let answer = match called {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => {
                self.recovered();
                return Err(refusal(failure));
            }
            Err(error) => return Err(self.failed(error, None)),
        };
        let writes = info.effect != Effect::Read;
        if let Some(doom) = answer.doom {
            let error = self.failed(GuestError::Doomed(doom), None);
            if !writes || !self.guest().await?.keeps_items() {
                return Err(error);
            }
            self.forward(Vec::new(), key.iter().chain(touched(&answer.value))).await?;
            return Err(RequestError::unknown(error.code, error.message));
        }
        let written = self.guest().await?.commit(answer.writes);
        self.recovered();
        if writes {
            self.forward(written, key.iter().chain(touched(&answer.value))).await?;
        }
        Ok(answer.value)
    }

    /// The items of a write follow wherever this vnode's items are going: into the stream of a
    /// handoff, into the instance of a swap. `written` are those in host storage; a guest that
    /// keeps its items is asked for those of `keys`.
    async fn forward(
        &mut self,
        written: Vec<Item>,
        keys: impl Iterator<Item = &Vec<u8>>,
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
        self.tell_forward(items.clone());
        self.forward_to_swap(items).await;
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
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
        CommandFailure::Refused(refusal) => {
            let mut error = RequestError::not_applied(ErrorCode::Refused, refusal.message.clone());
            error.refusal =
                Some(GuestRefusal { code: refusal.code, message: refusal.message, detail: refusal.detail });
            error
        }
    }
}
