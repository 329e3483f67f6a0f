//! The rules that must hold, whatever happens.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rule, by the number that it has in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Two nodes never serve one partition, nor have different states of one entry (R1, R2).
    OneTruth,
    /// What was acknowledged is there.
    LostWrite,
    /// What was deleted stays deleted (R12).
    Resurrected,
    /// A write happens once (R10).
    Twice,
    /// What is handed off is what was there (R7, R15).
    Carried,
    /// What is written the release before can read (R22).
    ReadBefore,
    /// Where nothing is wrong, a guest that is slow holds up nobody else (DESIGN.md D6).
    Prompt,
    /// An error says what became of the state (R10).
    AnswerTells,
    /// A command that goes everywhere has every key once, or says what is missing (R17).
    Coverage,
    /// Every request ends by its deadline (DESIGN.md D12).
    EveryRequestEnds,
    /// A node that was killed anywhere starts again.
    StartsAgain,
    /// No code of a node panics.
    Panics,
    /// Nothing of a life that is over is left.
    Leaks,
    /// Nobody works on for ever without waiting.
    Rests,
    /// Once faults end, everything completes.
    Completes,
}

impl Rule {
    /// It is broken, and how.
    pub fn broken(self, what: String) -> Broken {
        Broken { rule: self, what }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneTruth => "one truth per index (R1, R2)",
            Self::LostWrite => "no acknowledged write is lost",
            Self::Resurrected => "no deleted item returns (R12)",
            Self::Twice => "a write happens once (R10)",
            Self::Carried => "what is handed off is what was there (R7, R15)",
            Self::ReadBefore => "the release before can read what is written (R22)",
            Self::Prompt => "a slow guest holds up nobody else (D6)",
            Self::AnswerTells => "an answer says what became of the state (R10)",
            Self::Coverage => {
                "a command that goes everywhere has every key once, or says what is missing (R17)"
            }
            Self::EveryRequestEnds => "every request ends (D12)",
            Self::StartsAgain => "a node that was killed anywhere starts again",
            Self::Panics => "no code of a node panics",
            Self::Leaks => "nothing of a life that is over is left",
            Self::Rests => "nobody works on for ever without waiting",
            Self::Completes => "after all faults everything completes",
        })
    }
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub rule: Rule,
    /// How.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}
