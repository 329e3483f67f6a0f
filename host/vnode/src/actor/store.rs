//! The store of a vnode's items: opened before the first guest starts, closed behind the last one.

use annulus_core::description::{CommandInfo, Effect};
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_storage::{StorageError, Writer};

use super::Actor;

impl Actor {
    /// Open the store, unless it is open. A guest that keeps its items has none.
    ///
    /// The vnode continues with the writer that closed the store in order. If there is none, dots of the last run may
    /// have been sent and forgotten here: the vnode keeps the actor that it has drawn for itself (R8).
    ///
    /// # Errors
    /// The store cannot be used. The next command tries again.
    pub(super) async fn open_store(&mut self) -> Result<(), RequestError> {
        if self.is_open || self.release.description.exported.handoff {
            return Ok(());
        }
        let last = self.items.open().await.map_err(|error| storage_error(&error))?;
        if mutants::on(Mutant::ReuseActor) {
            self.writer = Writer { actor: u64::from(self.partition.id), dots: 0 };
        }
        if let Some(writer) = last {
            self.writer = writer;
        }
        self.is_open = true;
        Ok(())
    }

    /// Close the store in order: all changes are durable, and the next vnode continues the dots of this one.
    pub(super) async fn close_store(&mut self) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        if let Err(error) = self.items.close(self.writer).await {
            let (module, partition) = (&*self.release.name, self.partition.id);
            tracing::warn!(module, partition, %error, "a vnode's store was not closed in order");
        }
    }

    /// Refuse a command that writes while the disk is nearly full, unless it frees space. Nothing was read or changed.
    pub(super) fn check_space(&self, info: &CommandInfo) -> Result<(), RequestError> {
        if info.effect == Effect::Read || info.frees {
            return Ok(());
        }
        match self.items.refuses_writes() {
            None => Ok(()),
            Some(reason) => Err(RequestError::not_applied(
                ErrorCode::StorageFull,
                format!("{reason} (reads, and commands that are described as freeing memory, go on)"),
            )),
        }
    }

    /// Handle a batch that the store did not take. The instance may remember its writes, so it ends (R11); the next
    /// command gets another one, which sees what the store has.
    pub(super) fn not_committed(&mut self, error: &StorageError) -> RequestError {
        self.forget_writes(error.to_string());
        storage_error(error)
    }

    /// End an instance whose last writes are not committed: it may remember them.
    pub(super) fn forget_writes(&mut self, reason: String) {
        if let Some(guest) = self.guest.take_if(|guest| !guest.keeps_items()) {
            self.writer.dots = self.writer.dots.max(guest.dots());
            self.last_exit = Some(reason);
        }
    }
}

/// Return the error of a command whose vnode cannot use its store.
fn storage_error(error: &StorageError) -> RequestError {
    RequestError::not_applied(code_of(error), error.to_string())
}

/// Return the code of a command that fails with its vnode's store.
pub(super) fn code_of(error: &StorageError) -> ErrorCode {
    match error {
        StorageError::Damaged(_) => ErrorCode::StorageDamaged,
        StorageError::TooLong(_) => ErrorCode::ValueTooLarge,
        // The node stops, or another node owns the partition, or the system refuses for now: a retry finds out.
        StorageError::Closed | StorageError::Unavailable(_) => ErrorCode::NotReady,
    }
}
