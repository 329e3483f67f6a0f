//! The rules that must hold in every run.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rule. R numbers are those of PROTOCOL.md, D numbers those of DESIGN.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Only the owner of a partition serves it, and all nodes have the same state of a log entry (R1, R2).
    OneTruth,
    /// An acknowledged write is not lost.
    LostWrite,
    /// A deleted item does not return (R12).
    Resurrected,
    /// A write is applied at most once (R10).
    Twice,
    /// A handoff carries exactly the items of the old owner (R7, R15).
    Carried,
    /// The previous release can read every item that is written (R22).
    ReadBefore,
    /// Without faults, a slow guest delays no request to another one (D6).
    Prompt,
    /// An error states the outcome of its request truthfully (R10).
    AnswerTells,
    /// A coverage command returns every key once, or names the missing partitions (R17).
    Coverage,
    /// Every request ends by its deadline (D12).
    EveryRequestEnds,
    /// A node that was killed at any moment starts again.
    StartsAgain,
    /// No code of a node panics.
    Panics,
    /// Nothing of an ended node, transfer or vnode is left.
    Leaks,
    /// No task runs forever without waiting.
    Rests,
    /// Everything completes after the last fault.
    Completes,
}

impl Rule {
    /// Return the error of this rule, with the details in `what`.
    pub fn broken(self, what: String) -> Broken {
        Broken { rule: self, what }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneTruth => "one owner serves a partition, and an entry has one state (R1, R2)",
            Self::LostWrite => "no acknowledged write is lost",
            Self::Resurrected => "no deleted item returns (R12)",
            Self::Twice => "a write is applied at most once (R10)",
            Self::Carried => "a handoff carries exactly the items of the old owner (R7, R15)",
            Self::ReadBefore => "the previous release can read every item that is written (R22)",
            Self::Prompt => "a slow guest delays no request to another one (D6)",
            Self::AnswerTells => "an error states the outcome of its request (R10)",
            Self::Coverage => {
                "a coverage command returns every key once, or names the missing partitions (R17)"
            }
            Self::EveryRequestEnds => "every request ends by its deadline (D12)",
            Self::StartsAgain => "a killed node starts again",
            Self::Panics => "no code of a node panics",
            Self::Leaks => "nothing of an ended node, transfer or vnode is left",
            Self::Rests => "no task runs forever without waiting",
            Self::Completes => "everything completes after the last fault",
        })
    }
}

/// The violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule that was broken.
    pub rule: Rule,
    /// The details: nodes, keys and values.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}
