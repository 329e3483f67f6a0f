//! The mailbox of a vnode: commands, their replies, and the handle that puts them there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::item::{Item, RangeDigest};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{Request, RequestError};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::control::Control;

/// Maximum number of commands in a mailbox; the next command is answered `overloaded`. At 2 µs a command a full
/// mailbox is 2 ms of work, far below any deadline; the limit bounds memory.
pub(super) const MAILBOX_COMMANDS: usize = 1024;

/// Maximum size of the arguments in a mailbox in bytes; a command beyond it is answered `overloaded`, unless the
/// mailbox is empty. Enough for a few commands of the maximum size.
pub(super) const MAILBOX_BYTES: usize = 32 << 20;

/// A command in a mailbox.
pub struct Command {
    /// The command with its arguments.
    pub request: Request,
    /// For a coverage command: the requested page.
    pub page: Option<CoveragePage>,
    /// Identifies the request; a retry has the same id.
    pub id: RequestId,
    /// The command is not started after this time.
    pub deadline: Instant,
    /// Receiver of the answer.
    pub reply: Reply,
}

impl Command {
    /// Return the size that counts against [`MAILBOX_BYTES`].
    fn len(&self) -> usize {
        self.request.args.len() + self.request.key.as_ref().map_or(0, Bytes::len)
    }
}

/// A page of a coverage command on one partition.
#[derive(Clone, Debug)]
pub struct CoveragePage {
    /// Resume token from the previous page.
    pub after: Option<Vec<u8>>,
    /// Maximum number of values.
    pub items: u32,
    /// Approximate maximum size in bytes.
    pub bytes: u32,
}

/// The receiver of an answer. Dropping it unused tells the caller that no answer will come.
pub enum Reply {
    /// A task of this process.
    Local(oneshot::Sender<Result<Bytes, RequestError>>),
    /// A caller on another node.
    Remote(Box<dyn RemoteCaller>),
    /// The coordinator of a module with several replicas, on this node.
    Replicated(Box<ReplicatedCaller>),
}

/// The coordinator of a command of a module with several replicas.
pub struct ReplicatedCaller {
    /// Receives what the command has done as soon as it has run: the other replicas get its items meanwhile.
    pub ran: Option<oneshot::Sender<Executed>>,
    /// True if the digest of the key's items is wanted.
    pub wants_digest: bool,
    /// Notified once all that the command has seen and written is durable here.
    pub settled: oneshot::Sender<()>,
}

/// What a command of a module with several replicas has done.
#[derive(Debug)]
pub struct Executed {
    /// Its answer. It leaves once the quorum of the command has agreed.
    pub answer: Result<Bytes, RequestError>,
    /// The items that it has written, tombstones included.
    pub items: Vec<Item>,
    /// The digest of the items of its key right after it ran, if that was wanted.
    pub digest: Option<RangeDigest>,
}

/// A caller on another node. Dropping it unused tells the node that no answer will come.
pub trait RemoteCaller: Send {
    /// Send the answer.
    fn send(self: Box<Self>, answer: Result<Bytes, RequestError>);
}

impl Reply {
    /// Send the answer. It is discarded if the caller no longer waits.
    pub fn send(self, answer: Result<Bytes, RequestError>) {
        match self {
            Self::Local(caller) => drop(caller.send(answer)),
            Self::Remote(caller) => caller.send(answer),
            Self::Replicated(caller) => {
                // A command that was refused before it ran.
                if let Some(ran) = caller.ran {
                    let _ = ran.send(Executed { answer, items: Vec::new(), digest: None });
                }
                let _ = caller.settled.send(());
            }
        }
    }
}

/// A handle to a running vnode.
#[derive(Clone)]
pub struct VnodeHandle {
    /// The vnode's module.
    pub module: ModuleUid,
    /// The vnode's partition.
    pub partition: PartitionId,
    pub(super) commands: mpsc::Sender<Command>,
    /// Unbounded, because the master sends under the lock of a slot. The number of messages is bounded by the
    /// senders: the master sends a few for each change of the partition, a handoff has one page outstanding, and
    /// every other sender waits for an answer before its next message.
    pub(super) control: mpsc::UnboundedSender<Control>,
    pub(super) gauge: Arc<Gauge>,
}

/// Counters that an actor shares with its handles.
#[derive(Default)]
pub(super) struct Gauge {
    /// Number of guests that ended by a trap or the time limit since the vnode started.
    pub(super) traps: AtomicU64,
    /// Duration of the current back-off in milliseconds, 0 for none.
    pub(super) back_off_ms: AtomicU64,
    /// Size of the commands in the mailbox in bytes.
    pub(super) waiting_bytes: AtomicUsize,
}

impl Gauge {
    /// Note that a command left the mailbox.
    pub(super) fn taken(&self, command: &Command) {
        let before = self.waiting_bytes.fetch_sub(command.len(), Ordering::Relaxed);
        debug_assert!(before >= command.len(), "a command left a mailbox that it did not enter");
    }
}

/// The reason why a command was not put into a mailbox, with the command.
pub(super) enum NotAccepted {
    /// The mailbox is full.
    Full(Box<Command>),
    /// The vnode has ended.
    Ended(Box<Command>),
}

impl VnodeHandle {
    /// Put a command into the mailbox. Return false, and drop the command, if the mailbox is full or its vnode has
    /// ended.
    pub fn try_command(&self, command: Command) -> bool {
        self.offer(command).is_ok()
    }

    /// Put a command into the mailbox, or return it.
    pub(super) fn offer(&self, command: Command) -> Result<(), NotAccepted> {
        let bytes = command.len();
        let waiting = self.gauge.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let refused = if waiting > 0 && waiting + bytes > MAILBOX_BYTES {
            NotAccepted::Full(Box::new(command))
        } else {
            match self.commands.try_send(command) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(command)) => NotAccepted::Full(Box::new(command)),
                Err(mpsc::error::TrySendError::Closed(command)) => NotAccepted::Ended(Box::new(command)),
            }
        };
        self.gauge.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(refused)
    }

    /// Send a control message. Return false if the vnode has ended.
    pub fn tell(&self, control: Control) -> bool {
        self.control.send(control).is_ok()
    }

    /// Return true if the vnode has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.control.is_closed()
    }

    /// End vnodes: their waiting commands get this error; `delete` is that of [`Control::End`]. Each returned receiver resolves
    /// when its vnode has ended. The vnodes end even if the caller does not wait for them.
    pub(super) fn end_all(
        vnodes: impl IntoIterator<Item = Self>,
        error: &RequestError,
        delete: bool,
    ) -> Vec<oneshot::Receiver<()>> {
        let end = |vnode: Self| {
            let (done, ended) = oneshot::channel();
            vnode.tell(Control::End { error: error.clone(), delete, done });
            ended
        };
        vnodes.into_iter().map(end).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn command() -> (Command, oneshot::Receiver<Result<Bytes, RequestError>>) {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            request: Request { command: "get".into(), key: None, args: Bytes::new() },
            page: None,
            id: RequestId([0; 16]),
            deadline: Instant::now() + Duration::from_secs(1),
            reply: Reply::Local(reply),
        };
        (command, answer)
    }

    #[test]
    fn a_mailbox_is_bounded_in_bytes_too_but_takes_one_command_of_any_size() {
        let (commands, mut waiting) = mpsc::channel(100);
        let (control, _controls) = mpsc::unbounded_channel();
        let (module, partition) = (ModuleUid(1), PartitionId(0));
        let handle = VnodeHandle { module, partition, commands, control, gauge: Arc::default() };
        let large = |bytes: usize| {
            let (mut large, answer) = command();
            large.request.args = vec![0; bytes].into();
            (large, answer)
        };
        assert!(handle.try_command(large(MAILBOX_BYTES + 1).0));
        assert!(matches!(handle.offer(large(1).0), Err(NotAccepted::Full(_))));
        handle.gauge.taken(&waiting.try_recv().unwrap());
        assert!(
            handle.try_command(large(MAILBOX_BYTES / 2).0) && handle.try_command(large(MAILBOX_BYTES / 2).0)
        );
        assert!(!handle.try_command(large(1).0));
        assert!(handle.try_command(large(0).0), "a read of no arguments still fits");
    }

    #[test]
    fn a_full_mailbox_refuses_a_command_at_once() {
        let (commands, mut waiting) = mpsc::channel(1);
        let (control, _controls) = mpsc::unbounded_channel();
        let handle = VnodeHandle {
            module: ModuleUid(1),
            partition: PartitionId(0),
            commands,
            control,
            gauge: Arc::default(),
        };
        let (first, mut first_answer) = command();
        let (second, mut second_answer) = command();
        assert!(handle.try_command(first));
        assert!(!handle.try_command(second));
        assert!(second_answer.try_recv().is_err(), "its caller learns that no answer will come");
        waiting.try_recv().unwrap().reply.send(Ok(Bytes::new()));
        assert_eq!(first_answer.try_recv().unwrap(), Ok(Bytes::new()));
    }
}
