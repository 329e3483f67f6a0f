//! Who says that a rule is broken, one in each file.
//!
//! [`truth`]: acknowledged writes, resurrection, a write once, answers that tell the truth and come in time.
//! [`ledger`]: one state of each entry, one owner that answers. [`coverage`]: what a command that goes everywhere
//! must have in its answer. [`counts`]: what is handed off is what was there. [`formats`]: the release before can
//! read what is written. [`leaks`]: nothing of what has ended is left. That requests are answered soon where nothing is
//! wrong is looked at in `load.rs`, that everything completes is
//! looked at in `rest.rs`.

pub mod counts;
pub mod coverage;
pub mod formats;
pub mod leaks;
pub mod ledger;
pub mod truth;
