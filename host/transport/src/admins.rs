//! A limited number of slots for operators' connections. If all are taken, a new connection evicts the one
//! that has been idle longest, which is mostly that of a process that ended without closing it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::bulk::TokenInner;
use super::close::Close;
use super::limits::MAX_ADMINS;
use super::wire::Connection;

/// The slots of one node.
#[derive(Default)]
pub(super) struct AdminSlots {
    taken: Mutex<Vec<Arc<Slot>>>,
}

struct Slot {
    connection: Connection,
    /// The strong count is one, plus one per open stream.
    in_use: Arc<()>,
    /// Time at which the last stream ended; initially, the time at which the connection was accepted.
    idle_since: Mutex<Instant>,
}

impl Slot {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.in_use) == 1
    }
}

/// A taken slot. Dropping it frees the slot.
pub(super) struct AdminSlot {
    slot: Arc<Slot>,
    of: Arc<AdminSlots>,
}

impl AdminSlots {
    /// Take a slot. If all are taken, the connection that has been idle longest is closed. The connection is
    /// refused only if each of the others has a request in progress.
    pub(super) fn enter(self: &Arc<Self>, connection: &Connection) -> Result<AdminSlot, (Close, String)> {
        let slot = Arc::new(Slot {
            connection: connection.clone(),
            in_use: Arc::default(),
            idle_since: Mutex::new(Instant::now()),
        });
        let mut taken = self.taken.lock();
        if taken.len() >= MAX_ADMINS {
            let idle = taken.iter().enumerate().filter(|(_, slot)| slot.is_idle());
            let Some((longest, _)) = idle.min_by_key(|(_, slot)| *slot.idle_since.lock()) else {
                let reason = format!(
                    "{MAX_ADMINS} operators have a request under way here, which is as many as are served at a \
                     time: try again when one of them is done"
                );
                return Err((Close::Busy, reason));
            };
            let reason = "another operator came, and this connection had been idle longest";
            Close::Busy.close(&taken.swap_remove(longest).connection, reason);
        }
        taken.push(slot.clone());
        Ok(AdminSlot { slot, of: self.clone() })
    }
}

impl AdminSlot {
    /// Return the token that a stream of this connection holds while it is open.
    pub(super) fn stream(&self) -> TokenInner {
        let ends = Ends(self.slot.clone());
        TokenInner { _keep: Some(Arc::new(ends)), _in_use: self.slot.in_use.clone(), _permit: None }
    }
}

impl Drop for AdminSlot {
    fn drop(&mut self) {
        self.of.taken.lock().retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

/// Records the end of a stream when dropped.
struct Ends(Arc<Slot>);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
    }
}
