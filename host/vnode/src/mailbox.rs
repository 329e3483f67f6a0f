//! What a vnode can be told, and how it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use annulus_core::handoff::Tally;
use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::RequestError;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::guest::Behaviour;
use super::weigh::WeighedPage;
use annulus_transport::Responder;
use annulus_wasm::{Item, Page, Rejection, Request, TransferKind};

/// Commands that may wait for one vnode; the next one is answered `overloaded`. At 2 µs a
/// command a full mailbox is 2 ms of work, far below any deadline; it bounds memory.
pub const MAILBOX_COMMANDS: usize = 1024;

/// Bytes of arguments that may wait for one vnode; a command beyond is answered `overloaded`, unless
/// nothing waits. Enough for a few commands of the largest size.
pub const MAILBOX_BYTES: usize = 32 << 20;

/// One command in a mailbox.
pub struct Command {
    /// What the guest gets.
    pub request: Request,
    /// For a command that goes everywhere: which page.
    pub page: Option<PageWanted>,
    /// The same when it is sent again.
    pub id: RequestId,
    /// Not started after this.
    pub deadline: Instant,
    /// Where the answer goes.
    pub reply: Reply,
}

impl Command {
    /// The bytes that it takes while it waits.
    fn len(&self) -> usize {
        self.request.args.len() + self.request.key.as_ref().map_or(0, Vec::len)
    }
}

/// Which page of a command that goes everywhere.
pub struct PageWanted {
    /// The token of the page before.
    pub after: Option<Vec<u8>>,
    /// Most values.
    pub items: u32,
    /// Most bytes.
    pub bytes: u32,
}

/// Where an answer goes. Dropping it unsent tells the caller that there is no answer.
pub enum Reply {
    /// To a task of this process.
    Local(oneshot::Sender<Result<Bytes, RequestError>>),
    /// Over the lane that the command came by.
    Remote(Responder),
}

/// First byte of an answer on the wire.
const ANSWER_OK: u8 = 0;
const ANSWER_ERROR: u8 = 1;

impl Reply {
    /// Sends the answer; a caller that no longer waits is no error.
    pub fn send(self, answer: Result<Bytes, RequestError>) {
        match self {
            Self::Local(caller) => drop(caller.send(answer)),
            Self::Remote(responder) => responder.send(encode_answer(answer)),
        }
    }
}

fn encode_answer(answer: Result<Bytes, RequestError>) -> Bytes {
    match answer {
        Ok(reply) => {
            let mut out = BytesMut::with_capacity(1 + reply.len());
            out.put_u8(ANSWER_OK);
            out.extend_from_slice(&reply);
            out.freeze()
        }
        Err(error) => {
            let mut out = vec![ANSWER_ERROR];
            ciborium::into_writer(&error, &mut out).expect("an error is plain data and a Vec never fails");
            out.into()
        }
    }
}

/// Reads an answer that came over a lane.
///
/// # Errors
/// The vnode's error, or that the bytes are no answer.
pub fn decode_answer(mut answer: Bytes) -> Result<Bytes, RequestError> {
    use annulus_core::request::ErrorCode;
    let junk =
        |what: String| RequestError::unknown(ErrorCode::Internal, format!("the node answered junk: {what}"));
    match answer.first() {
        Some(&ANSWER_OK) => Ok(answer.split_off(1)),
        Some(&ANSWER_ERROR) => {
            Err(ciborium::from_reader(&answer[1..]).unwrap_or_else(|error| junk(error.to_string())))
        }
        other => Err(junk(format!("an answer of kind {other:?}"))),
    }
}

/// Where a vnode's items go while it serves.
#[derive(Clone)]
pub struct Outgoing {
    /// Why.
    pub kind: TransferKind,
    /// Name of the node that they go to.
    pub target: String,
    /// Everything that the handoff has to know, of all vnodes of the partition, each vnode's
    /// in commit order.
    pub sink: mpsc::UnboundedSender<StreamEvent>,
    /// True while the receiver is so far behind that commands wait, so that what is kept for it stays
    /// bounded. A sender that is gone holds up nobody.
    pub congested: watch::Receiver<bool>,
}

impl Outgoing {
    pub(super) fn is_congested(&self) -> bool {
        *self.congested.borrow() && self.congested.has_changed().is_ok()
    }
}

/// What a vnode tells its handoff.
#[derive(Debug)]
pub enum StreamEvent {
    /// A page of the fold that was asked for, at its commit point (R15).
    Page {
        /// Whose.
        module: ModuleUid,
        /// As asked.
        attempt: u64,
        /// The page, or why there is none.
        page: Result<Page, String>,
    },
    /// The items of a write that was committed meanwhile.
    Forward {
        /// Whose.
        module: ModuleUid,
        /// Tombstones too.
        items: Vec<Item>,
    },
    /// The vnode answers nothing any more; no forward follows.
    Sealed {
        /// Whose.
        module: ModuleUid,
        /// As told.
        round: u64,
        /// How many items it has now, where the host keeps them.
        stored: Option<u64>,
    },
    /// The module puts the handoff off, or has lost its items: what was sent is not what is.
    Broken {
        /// Whose.
        module: ModuleUid,
        /// Why.
        reason: String,
    },
}

/// Items that a vnode has merged.
#[derive(Debug, Default)]
pub struct Taken {
    /// All of them, counted as they were merged.
    pub tally: Tally,
    /// Those that it could not take.
    pub rejections: Vec<Rejection>,
}

/// How many items a vnode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// The host keeps them: exactly so many.
    Stored(u64),
    /// The guest keeps them and says so many, roughly.
    Said(u64),
    /// The guest cannot tell.
    Unknown,
}

/// What a swap did to one vnode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapReport {
    /// Items carried over.
    pub items: u64,
    /// The longest that a command could have had to wait for it, in microseconds.
    pub stall_us: u64,
    /// The old guest ended within it, and what it kept in memory is gone.
    pub lost: bool,
}

/// What the host tells a vnode, ahead of its commands.
pub enum Control {
    /// From now on the items of writes go there too.
    StartOutgoing(Outgoing),
    /// Put a page of the fold into the handoff's stream.
    ReadPage {
        /// To answer with.
        attempt: u64,
        /// Token of the page before.
        after: Option<Vec<u8>>,
    },
    /// The handoff is over, one way or the other.
    EndOutgoing {
        /// Or cancelled.
        finished: bool,
    },
    /// Answer nothing any more: commands wait (R1). Said to the handoff after all forwards, with this
    /// number.
    Seal(u64),
    /// Serve again.
    Unseal,
    /// Items from another replica, merged before it is answered.
    Items(Vec<Item>, oneshot::Sender<Result<Taken, String>>),
    /// Answer at once: says that the vnode comes to its messages.
    Ping(oneshot::Sender<()>),
    /// How many items are there?
    Count(oneshot::Sender<Count>),
    /// Go on with this behaviour and the items that are there.
    Swap(Arc<Behaviour>, oneshot::Sender<Result<SwapReport, String>>),
    /// Say how many items and bytes a page of the fold has.
    Weigh {
        /// Token of the page before.
        after: Option<Vec<u8>>,
        /// That of the page, or why there is none.
        answer: oneshot::Sender<Result<WeighedPage, String>>,
    },
    /// Keep the items and answer every command with this error from now on: the partition is another
    /// node's by a history that does not have them.
    SetAside(RequestError),
    /// End: answer all commands with this error, let go of the items if they are elsewhere.
    End {
        /// For the commands that still wait.
        error: RequestError,
        /// All items are elsewhere for good.
        delete: bool,
        /// Answered when it is over.
        done: oneshot::Sender<()>,
    },
}

/// How to reach one vnode.
#[derive(Clone)]
pub struct VnodeHandle {
    /// Which module's.
    pub module: ModuleUid,
    /// Of which partition.
    pub partition: PartitionId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) control: mpsc::UnboundedSender<Control>,
    pub(super) gauge: Arc<Gauge>,
}

/// What others may see of a running vnode.
#[derive(Default)]
pub(super) struct Gauge {
    /// The guest ended by trap or time this many times since the vnode started.
    pub(super) traps: AtomicU64,
    /// Milliseconds of back-off that is in force, 0 for none.
    pub(super) back_off_ms: AtomicU64,
    /// Bytes of the commands that wait.
    pub(super) waiting_bytes: AtomicUsize,
}

impl Gauge {
    /// A command left the mailbox.
    pub(super) fn taken(&self, command: &Command) {
        self.waiting_bytes.fetch_sub(command.len(), Ordering::Relaxed);
    }
}

/// Why a command was not put into a mailbox.
pub(super) enum NoRoom {
    /// Too much waits.
    Full(Box<Command>),
    /// The vnode has ended.
    Ended(Box<Command>),
}

impl VnodeHandle {
    /// Puts a command into the mailbox; false (and the command dropped) if there is no room.
    pub fn try_command(&self, command: Command) -> bool {
        self.offer(command).is_ok()
    }

    /// The same, giving the command back.
    pub(super) fn offer(&self, command: Command) -> Result<(), NoRoom> {
        let bytes = command.len();
        let waiting = self.gauge.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let refused = if waiting > 0 && waiting + bytes > MAILBOX_BYTES {
            NoRoom::Full(Box::new(command))
        } else {
            match self.commands.try_send(command) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(command)) => NoRoom::Full(Box::new(command)),
                Err(mpsc::error::TrySendError::Closed(command)) => NoRoom::Ended(Box::new(command)),
            }
        };
        self.gauge.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(refused)
    }

    /// Tells the vnode; false if it has ended.
    pub fn tell(&self, control: Control) -> bool {
        self.control.send(control).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use annulus_core::request::ErrorCode;

    use super::*;

    fn command() -> (Command, oneshot::Receiver<Result<Bytes, RequestError>>) {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            request: Request { command: "get".into(), key: None, args: Vec::new() },
            page: None,
            id: RequestId([0; 16]),
            deadline: Instant::now() + Duration::from_secs(1),
            reply: Reply::Local(reply),
        };
        (command, answer)
    }

    #[test]
    fn an_answer_reads_back_as_it_was_sent() {
        let reply = Bytes::from_static(b"value");
        assert_eq!(decode_answer(encode_answer(Ok(reply.clone()))), Ok(reply));
        assert_eq!(decode_answer(encode_answer(Ok(Bytes::new()))), Ok(Bytes::new()));
        let error = RequestError::not_applied(ErrorCode::Overloaded, "the mailbox is full");
        assert_eq!(decode_answer(encode_answer(Err(error.clone()))), Err(error));
    }

    #[test]
    fn junk_is_an_answer_of_unknown_outcome() {
        for junk in [&b""[..], &[2], &[ANSWER_ERROR], &[ANSWER_ERROR, 0xff]] {
            let error = decode_answer(Bytes::copy_from_slice(junk)).unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal, "{junk:?}");
        }
    }

    #[test]
    fn a_mailbox_is_bounded_in_bytes_too_but_takes_one_command_of_any_size() {
        let (commands, mut waiting) = mpsc::channel(100);
        let (control, _controls) = mpsc::unbounded_channel();
        let (module, partition) = (ModuleUid(1), PartitionId(0));
        let handle = VnodeHandle { module, partition, commands, control, gauge: Arc::default() };
        let large = |bytes: usize| {
            let (mut large, answer) = command();
            large.request.args = vec![0; bytes];
            (large, answer)
        };
        assert!(handle.try_command(large(MAILBOX_BYTES + 1).0));
        assert!(matches!(handle.offer(large(1).0), Err(NoRoom::Full(_))));
        handle.gauge.taken(&waiting.try_recv().unwrap());
        assert!(
            handle.try_command(large(MAILBOX_BYTES / 2).0) && handle.try_command(large(MAILBOX_BYTES / 2).0)
        );
        assert!(!handle.try_command(large(1).0));
        assert!(handle.try_command(large(0).0), "a read of no arguments still fits");
    }

    #[test]
    fn a_full_mailbox_gives_a_command_up_at_once() {
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
        assert!(second_answer.try_recv().is_err(), "its caller hears that no answer will come");
        waiting.try_recv().unwrap().reply.send(Ok(Bytes::new()));
        assert_eq!(first_answer.try_recv().unwrap(), Ok(Bytes::new()));
    }
}
