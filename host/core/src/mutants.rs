//! Faults that are put back on purpose, so that a test shows that it would notice them.
//!
//! Code that keeps a rule asks [`on`] in the place where the rule could be broken. It is always false in a build
//! without debug assertions, which is what is shipped (`--profile dist`), and false in any other unless a
//! simulation runs in this thread within [`during`].

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident: $rule:literal,)*) => {
        /// A fault.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        pub enum Mutant {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The rule of PROTOCOL.md, or the decision of DESIGN.md, that it breaks.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Self::$name => $rule,)*
                }
            }
        }
    };
}

mutants! {
    /// A node that starts again has none of its seals.
    ForgetSeal: "R1",
    /// A partition is served while its seal is on.
    ServeWhileSealed: "R1",
    /// A holder serves again where it does not know whether its flip was agreed on.
    AssumeNotFlipped: "R1",
    /// The log flips a transfer in the place of another that was cancelled.
    FlipTheCancelled: "R1",
    /// A vnode serves what was routed by another version than its own.
    ServeStaleVersions: "R2",
    /// A table that was made from another ring is aimed at.
    RebalanceWithoutBase: "R4",
    /// The claim names one node for all places of a set.
    RepeatANode: "R4",
    /// What was staged of a transfer outlives its end.
    KeepStage: "R7",
    /// Who fills a stage that was dropped goes on with the next.
    FillTheNextStage: "R7",
    /// The task of a transfer that is over takes the stage from the next one.
    StageWhatIsOver: "R7",
    /// A stage whose vnode trapped, and lost what it had taken in, is promoted.
    PromoteWhatTrapped: "R7",
    /// A second stage is filled while a flip of the first may be agreed on.
    StreamAgainUnderAFlip: "R7",
    /// A stage is dropped for a stream that its sender may have given up.
    DropAtBegin: "R16",
    /// What the receiver said of a comparison just before the link was lost is taken for "the same".
    BelieveLostAnswers: "R16",
    /// What a stage has is not compared with what was sent.
    IgnoreEndDigest: "R16",
    /// What may have been applied is sent again.
    RetryUnknown: "R10",
    /// A command is answered before it runs.
    AckEarly: "R11",
    /// What a write changes during a handoff does not follow.
    LoseForward: "R15",
    /// The same, while the transfer has no turn.
    LoseForwardWhileHeld: "R15",
    /// A page comes into the stream behind writes that it was read before.
    LatePage: "R15",
    /// A page is short of one of its items, on both ends.
    LoseAnItem: "R15",
    /// The driver of a transfer that was replaced reads pages for the next one, and seals.
    ReadForAnotherTransfer: "R15",
    /// A node takes modules and members in while it waits to join another cluster, which wipes them.
    GrowWhileJoining: "R18",
    /// A node that has modules joins without having been told to discard them.
    JoinOverModules: "R18",
    /// A vnode starts what is past its deadline.
    DeadlineNotChecked: "R20",
    /// The newest format is written whether or not the release before reads it.
    WriteTheNewestFormat: "R22",
    /// A module goes back to a release that does not read what is written.
    FollowUnread: "R22",
    /// A state of before a module's deploy ends its vnodes.
    EndWhatIsNewer: "R22",
    /// The log is purged before the snapshot that takes its place is on the disk.
    PurgeBeforeItsSnapshot: "D3",
    /// The other vnodes of a partition are sealed, and wait, while one is busy with a command.
    SealTheBusy: "D6",
    /// A handoff carries no message that is larger than a frame.
    OneFrameForAMessage: "D9",
    /// A sealed sender whose stream is accepted, and lost, again and again never gives up.
    TakeAcceptForProgress: "D9",
    /// Writers never wait for the receiver of a handoff.
    NeverCongested: "D9",
    /// A module whose first deploy failed on one node is undeployed.
    UndeployWhatFailed: "D10",
    /// A coordinator waits for an answer beyond the deadline.
    NoDeadline: "D12",
    /// The task of a handoff's stream waits on when the stream has ended.
    KeepStreamTask: "D12",
    /// What the host keeps of a vnode's items outlives the vnode.
    KeepItems: "D7",
    /// Components that no release names any more stay on the disk.
    KeepComponents: "D10",
    /// A node that starts or stops lets calls fall.
    DropCallsWhileStarting: "D12",
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
            format!("no mutant is named `{name}`; there are {}", all.join(", "))
        })
    }
}

thread_local! {
    static PRESENT: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Is this fault put back in this thread?
#[inline]
pub fn on(mutant: Mutant) -> bool {
    cfg!(debug_assertions) && PRESENT.get() == Some(mutant)
}

/// Runs something with a fault put back in this thread.
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
    fn a_fault_is_back_only_in_its_thread_and_its_time() {
        during(Some(Mutant::ForgetSeal), || {
            assert!(on(Mutant::ForgetSeal) && !on(Mutant::ServeWhileSealed));
            let elsewhere = std::thread::spawn(|| on(Mutant::ForgetSeal));
            assert!(!elsewhere.join().unwrap());
        });
        assert!(!on(Mutant::ForgetSeal));
    }

    #[test]
    fn a_mutant_is_found_by_its_name() {
        for mutant in Mutant::ALL {
            assert_eq!(mutant.to_string().parse(), Ok(*mutant));
        }
        assert!("Nothing".parse::<Mutant>().unwrap_err().contains("ForgetSeal"));
    }
}
