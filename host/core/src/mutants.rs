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
