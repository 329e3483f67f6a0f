//! Mutants: known faults that a test puts back on purpose, to show that it would notice them.
//!
//! The code that keeps a rule calls [`on`] at the place where the rule could be broken. `on` is always false
//! in a build without debug assertions, which is the build that is shipped (`--profile dist`). In other
//! builds it is false unless a simulation runs in this thread within [`during`].

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident: $rule:literal,)*) => {
        /// A fault that can be put back.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        pub enum Mutant {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Mutant {
            /// Every mutant, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Return the rule of PROTOCOL.md, or the decision of DESIGN.md, that the mutant breaks.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Self::$name => $rule,)*
                }
            }
        }
    };
}

mutants! {
    /// A node that restarts has none of its seals.
    ForgetSeal: "R1",
    /// A partition is served while it is sealed.
    ServeWhileSealed: "R1",
    /// An owner serves again although it does not know whether its flip was committed.
    AssumeNotFlipped: "R1",
    /// The log flips a transfer in place of another one that was cancelled.
    FlipTheCancelled: "R1",
    /// A vnode serves requests that were routed by a partition version other than the vnode's.
    ServeStaleVersions: "R2",
    /// A table that was computed from another ring becomes the target.
    RebalanceWithoutBase: "R4",
    /// The claim puts one node on all places of a set.
    RepeatANode: "R4",
    /// Items staged for a transfer outlive the end of the transfer.
    KeepStage: "R7",
    /// The task that fills a stage continues with the next stage after its stage was dropped.
    FillTheNextStage: "R7",
    /// The task of a transfer that has ended takes the stage from the next transfer.
    StageWhatIsOver: "R7",
    /// A stage whose vnode trapped, and so lost the items it had taken, is promoted.
    PromoteWhatTrapped: "R7",
    /// A second stage is filled while a flip of the first may be committed.
    StreamAgainUnderAFlip: "R7",
    /// A vnode whose store was not closed in order assigns the dots of its last run again.
    ReuseActor: "R8",
    /// A stage is dropped for a stream that its sender may have abandoned.
    DropAtBegin: "R16",
    /// A comparison whose answer was lost with the link counts as "the same".
    BelieveLostAnswers: "R16",
    /// The contents of a stage are not compared with the items that were sent.
    IgnoreEndDigest: "R16",
    /// A command that may have been applied is sent again.
    RetryUnknown: "R10",
    /// A command is answered before it runs.
    AckEarly: "R11",
    /// A reply does not wait until the items that it tells of are durable.
    AckBeforeSync: "R11",
    /// Writes during a handoff are not forwarded.
    LoseForward: "R15",
    /// Writes are not forwarded while the transfer is held, without a permit to read pages.
    LoseForwardWhileHeld: "R15",
    /// A page enters the stream behind writes that are newer than its read.
    LatePage: "R15",
    /// A page lacks one of its items, at both ends.
    LoseAnItem: "R15",
    /// The driver of a transfer that was replaced reads pages for the next transfer, and seals.
    ReadForAnotherTransfer: "R15",
    /// A node admits modules and members while it waits to join another cluster, and the join wipes them.
    GrowWhileJoining: "R18",
    /// A node that has modules joins without a request to discard them.
    JoinOverModules: "R18",
    /// A vnode starts a command that is past its deadline.
    DeadlineNotChecked: "R20",
    /// The newest format is written whether or not the previous release reads it.
    WriteTheNewestFormat: "R22",
    /// A module returns to a release that cannot read the format in use.
    FollowUnread: "R22",
    /// A cluster state older than a module's deploy ends the module's vnodes.
    EndWhatIsNewer: "R22",
    /// The log is purged before the snapshot that replaces it is on disk.
    PurgeBeforeItsSnapshot: "D3",
    /// The other vnodes of a partition are sealed, and wait, while one of them is busy with a command.
    SealTheBusy: "D6",
    /// A handoff cannot carry a message that is larger than a frame.
    OneFrameForAMessage: "D9",
    /// A sealed sender whose stream is accepted and lost again and again never has the transfer cancelled.
    TakeAcceptForProgress: "D9",
    /// Writers never wait for the receiver of a handoff.
    NeverCongested: "D9",
    /// A module is undeployed when its first deploy fails on one node.
    UndeployWhatFailed: "D10",
    /// A coordinator waits for an answer beyond the deadline.
    NoDeadline: "D12",
    /// The task of a handoff stream keeps waiting after the stream has ended.
    KeepStreamTask: "D12",
    /// The host keeps a vnode's items after the vnode is gone.
    KeepItems: "D7",
    /// Components that no release refers to stay on disk.
    KeepComponents: "D10",
    /// A node that starts or stops drops calls.
    DropCallsWhileStarting: "D12",
    /// A store that has lost its items answers before it has been built from the others.
    BuildingAnswers: "R5",
    /// A process takes the memory that the former one has lost for all that there was.
    TrustEmptyMemory: "R5",
    /// A write is acknowledged although no other replica is sent it.
    KeepToItself: "R6",
    /// A read asks no other replica.
    ReadOneReplica: "R9",
    /// A set gets smaller although those that stay lack what the leaver has.
    FlipUnlevelled: "R4",
    /// A hint ends although too few members have its items.
    DropHint: "R6",
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|mutant| mutant.to_string() == name);
        found.copied().ok_or_else(|| {
            let all: Vec<String> = Self::ALL.iter().map(ToString::to_string).collect();
            format!("no mutant is named `{name}`; the mutants are {}", all.join(", "))
        })
    }
}

thread_local! {
    static PRESENT: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Return true if this fault is put back in this thread.
#[inline]
pub fn on(mutant: Mutant) -> bool {
    cfg!(debug_assertions) && PRESENT.get() == Some(mutant)
}

/// Run a closure with a fault put back in this thread.
///
/// # Panics
/// In a build without debug assertions, where no fault can be put back.
pub fn during<T>(mutant: Option<Mutant>, run: impl FnOnce() -> T) -> T {
    struct Restore(Option<Mutant>);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRESENT.set(self.0);
        }
    }
    assert!(
        mutant.is_none() || cfg!(debug_assertions),
        "this build has no mutants: it has no debug assertions"
    );
    let _restore = Restore(PRESENT.replace(mutant));
    run()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mutant_is_on_only_in_its_thread_and_during_its_run() {
        during(Some(Mutant::ForgetSeal), || {
            assert!(on(Mutant::ForgetSeal) && !on(Mutant::ServeWhileSealed));
            let elsewhere = std::thread::spawn(|| on(Mutant::ForgetSeal));
            assert!(!elsewhere.join().unwrap());
        });
        assert!(!on(Mutant::ForgetSeal));
    }

    #[test]
    fn a_mutant_parses_from_its_name() {
        for mutant in Mutant::ALL {
            assert_eq!(mutant.to_string().parse(), Ok(*mutant));
        }
        assert!("Nothing".parse::<Mutant>().unwrap_err().contains("ForgetSeal"));
    }
}
