//! Who says that a rule is broken, one in each file.
//!
//! [`truth`]: acknowledged writes, resurrection, a write once, answers that tell the truth and come in time.
//! [`ledger`]: one state of each entry, one owner that answers. [`coverage`]: what a command that goes everywhere
//! must have in its answer. [`leaks`]: nothing of what has ended is left. That everything completes is
//! looked at in `rest.rs`.

pub mod coverage;
pub mod leaks;
pub mod ledger;
pub mod truth;
