//! One instance of a script: a key/value store with the script's faults.

mod commands;
mod items;

use std::sync::Arc;
use std::time::Duration;

use annulus_core::contract::{Conflict, MergeOutcome, Rejection, TransferKind, Values};
use annulus_core::description::CommandInfo;
use annulus_core::item::{Budget, Item, Page};
use annulus_core::request::Request;
use annulus_storage::Items;
use annulus_vnode::{CommandResult, GuestCall, InstanceConfig, Runtime};
use annulus_wasm::{Answer, GuestError, Limits, VnodePlace};

use super::held::Held;
use super::module::Seat;
use super::{Fall, Keeps, Observer, OneIn, Script};

/// Memory that an item takes in addition to its key and value, in bytes.
const OVERHEAD: usize = 64;

/// The guest that vnodes of a scripted module run.
pub(super) struct Scripted {
    script: Arc<Script>,
    observer: Arc<dyn Observer>,
    at: VnodePlace,
    /// The host's storage of the items.
    items: Items,
    limits: Limits,
    /// The items that the guest keeps.
    held: Arc<Held>,
    bytes: usize,
    /// Largest size of the items so far, in bytes, because WebAssembly memory never shrinks.
    most: usize,
    dots: u64,
    _seat: Seat,
}

/// A call in progress. If it is dropped before it has returned, the observer is notified of its fall.
struct UnderWay {
    observer: Arc<dyn Observer>,
    at: VnodePlace,
    call: &'static str,
    keeps: Keeps,
    returned: bool,
}

impl UnderWay {
    /// Record that the guest has answered.
    fn returned(&mut self) {
        self.returned = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.returned {
            self.observer.fell(&Fall { at: &self.at, call: self.call, keeps: self.keeps });
        }
    }
}

fn trapped(call: &str) -> GuestError {
    GuestError::Trapped(format!("the script has {call} trap"))
}

impl Scripted {
    pub(super) async fn start(
        script: Arc<Script>,
        observer: Arc<dyn Observer>,
        config: InstanceConfig<'_>,
        seat: Seat,
        held: Arc<Held>,
    ) -> Result<Self, GuestError> {
        let InstanceConfig { vnode: at, items, limits, .. } = config;
        let _seat = seat;
        let mut guest = Self { script, observer, at, items, limits, held, bytes: 0, most: 0, dots: 0, _seat };
        let traps = guest.script.traps.init;
        guest
            .call("init", traps, async |guest| {
                if guest.falls(guest.script.init_refuses) {
                    return Err(GuestError::InitRefused("the script refuses".to_owned()));
                }
                Ok(())
            })
            .await?;
        Ok(guest)
    }

    fn under_way(&self, call: &'static str) -> UnderWay {
        let (observer, at, keeps) = (self.observer.clone(), self.at.clone(), self.script.keeps);
        UnderWay { observer, at, call, keeps, returned: false }
    }

    /// Run a call with the script's faults: it may be slow, or trap before it has any effect.
    async fn call<T>(
        &mut self,
        call: &'static str,
        traps: OneIn,
        run: impl AsyncFnOnce(&mut Self) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        let mut under_way = self.under_way(call);
        self.wait().await;
        if self.falls(traps) {
            return Err(trapped(call));
        }
        let result = run(self).await;
        under_way.returned = !matches!(&result, Err(error) if error.poisons());
        result
    }

    /// Draw whether an event of the script happens now. No event happens while the observer is calm.
    fn falls(&self, how_often: OneIn) -> bool {
        !self.observer.is_calm() && how_often.falls()
    }

    async fn wait(&self) {
        if let Some(time) = self.script.slow.wait(self.observer.is_calm()) {
            tokio::time::sleep(time).await;
        }
    }

    fn next_dot(&mut self) -> (u64, u64) {
        self.dots += 1;
        (self.at.actor, self.dots)
    }

    fn keeps(&self) -> bool {
        self.script.keeps == Keeps::Guest
    }
}

impl Runtime for Scripted {
    fn command<'a>(
        &'a mut self,
        info: &'a CommandInfo,
        id: (u64, u64),
        request: &'a Request,
    ) -> GuestCall<'a, CommandResult<Vec<u8>>> {
        GuestCall::pending(self.run_command(info, id, request))
    }

    fn coverage<'a>(
        &'a mut self,
        info: &'a CommandInfo,
        id: (u64, u64),
        request: &'a Request,
        after: Option<&'a [u8]>,
        limit: Budget,
    ) -> GuestCall<'a, CommandResult<Values>> {
        GuestCall::pending(self.run_page(info, id, request, after, limit))
    }

    fn keeps_items(&self) -> bool {
        self.keeps()
    }

    fn fold<'a>(&'a mut self, after: Option<&'a [u8]>, limit: Budget) -> GuestCall<'a, Page> {
        let traps = self.script.traps.fold;
        let wait = self.script.endless_fold.map(|_| Duration::from_millis(1));
        GuestCall::pending(self.call("fold", traps, async move |guest| {
            // Without a pause virtual time would not advance during an endless sequence of pages.
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            Ok(guest.page(after, limit))
        }))
    }

    fn count(&mut self) -> GuestCall<'_, u64> {
        GuestCall::done(self.held.kept.lock().len() as u64)
    }

    fn items_of<'a>(&'a mut self, key: &'a [u8]) -> GuestCall<'a, Vec<Item>> {
        let traps = self.script.traps.fold;
        GuestCall::pending(self.call("encode-handoff-items", traps, async move |guest| {
            let kept = guest.held.kept.lock();
            Ok(kept.get(key).map(|entry| guest.item(key, entry)).into_iter().collect())
        }))
    }

    fn take<'a>(&'a mut self, items: &'a [Item]) -> GuestCall<'a, Answer<Vec<Rejection>>> {
        let traps = self.script.traps.take;
        GuestCall::pending(self.call("handle-handoff-data", traps, async move |guest| {
            let value = guest.take_in(items)?;
            Ok(Answer { value, writes: Vec::new(), doom: None })
        }))
    }

    fn merge<'a>(&'a mut self, conflicts: &'a [Conflict]) -> Option<GuestCall<'a, Vec<MergeOutcome>>> {
        let traps = self.script.traps.take;
        Some(GuestCall::pending(self.call("merge", traps, async move |guest| {
            Ok(conflicts.iter().map(|conflict| guest.merged(conflict)).collect())
        })))
    }

    fn forget<'a>(&'a mut self, tombstones: &'a [Item]) -> GuestCall<'a, Vec<Item>> {
        GuestCall::pending(self.call("forget", OneIn(0), async move |guest| {
            guest.let_go_of(tombstones);
            Ok(Vec::new())
        }))
    }

    fn delete(&mut self) -> GuestCall<'_, ()> {
        self.held.kept.lock().clear();
        self.bytes = 0;
        GuestCall::done(())
    }

    fn memory(&self) -> Option<(usize, usize)> {
        self.keeps().then(|| (self.most, self.memory_limit()))
    }

    fn handoff_starting<'a>(&'a mut self, _: TransferKind, _: &'a str) -> GuestCall<'a, bool> {
        let traps = self.script.traps.callback;
        GuestCall::pending(
            self.call("handoff-starting", traps, async |guest| {
                Ok(!guest.falls(guest.script.puts_handoff_off))
            }),
        )
    }

    fn handoff_ended<'a>(&'a mut self, _: TransferKind, _: &'a str, finished: bool) -> GuestCall<'a, ()> {
        let call = if finished { "handoff-finished" } else { "handoff-cancelled" };
        let traps = self.script.traps.callback;
        GuestCall::pending(self.call(call, traps, async |_| Ok(())))
    }

    fn handles_in_handoff<'a>(&'a mut self, _: &'a Request) -> GuestCall<'a, bool> {
        GuestCall::pending(self.call("handle-handoff-command", OneIn(0), async |guest| {
            Ok(!guest.falls(guest.script.refuses_in_handoff))
        }))
    }

    fn handle_exit<'a>(&'a mut self, _: &'a str) -> GuestCall<'a, ()> {
        let traps = self.script.traps.callback;
        GuestCall::pending(self.call("handle-exit", traps, async |_| Ok(())))
    }

    fn terminate<'a>(&'a mut self, _: &'a str) -> GuestCall<'a, Vec<Item>> {
        let traps = self.script.traps.callback;
        GuestCall::pending(self.call("terminate", traps, async |_| Ok(Vec::new())))
    }

    fn dots(&self) -> u64 {
        self.dots
    }

    fn set_dots(&mut self, dots: u64) {
        self.dots = dots;
    }
}
