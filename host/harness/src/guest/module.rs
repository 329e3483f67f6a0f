//! Creates instances of a script and limits how many may exist at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus_vnode::{GuestCall, InstanceConfig, Program, Runtime};
use annulus_wasm::{GuestError, RoomLimit};

use super::held::Shelf;
use super::scripted::Scripted;
use super::{Observer, Script};

/// A deployed script, from which instances are created.
pub(super) struct Module {
    script: Arc<Script>,
    observer: Arc<dyn Observer>,
    room: Arc<Room>,
    shelf: Arc<Shelf>,
}

impl Module {
    pub(super) fn new(
        script: Arc<Script>,
        observer: Arc<dyn Observer>,
        room: Arc<Room>,
        shelf: Arc<Shelf>,
    ) -> Self {
        Self { script, observer, room, shelf }
    }
}

impl Program for Module {
    fn start<'a>(&'a self, config: InstanceConfig<'a>) -> GuestCall<'a, Box<dyn Runtime>> {
        GuestCall::pending(async move {
            let seat = self.room.take()?;
            let held = self.shelf.add(&config.vnode, self.script.keeps, &config.items);
            let guest =
                Scripted::start(self.script.clone(), self.observer.clone(), config, seat, held).await?;
            Ok(Box::new(guest) as Box<dyn Runtime>)
        })
    }
}

/// Counts the running instances and enforces the limit on their number.
pub(super) struct Room {
    live: AtomicUsize,
    limit: RoomLimit,
}

impl Room {
    pub(super) fn new(limit: RoomLimit) -> Self {
        Self { live: AtomicUsize::new(0), limit }
    }

    pub(super) fn limit(&self) -> RoomLimit {
        self.limit
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>) -> Result<Seat, GuestError> {
        let live = self.live.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(self.clone());
        if live >= self.limit.instances {
            let limit = self.limit;
            return Err(GuestError::NoRoom(format!("{live} scripted guests run, and no more may: {limit}")));
        }
        Ok(seat)
    }
}

/// Permission to run one instance. Dropping it frees the slot.
pub(super) struct Seat(Arc<Room>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}
