//! Log lines, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::start::LogFormat;

/// Which lines are wanted: `LEVEL` or `TARGET=LEVEL`, with commas between, as `info,annulus=debug`.
/// Where it is absent or cannot be read, the verb and `-v` decide.
const VARIABLE: &str = "ANNULUS_LOG";

/// Sets logging up for this process. `serving` is for verbs that run a node.
pub(super) fn set_up(verbose: u8, serving: bool, format: LogFormat) {
    let default = match (verbose, serving) {
        (0, false) => "off",
        (0, true) => "warn,annulus=info,openraft=off",
        (1, false) => "warn,annulus=info",
        (1, true) => "info,annulus=debug,openraft=warn",
        _ => "debug,annulus=trace",
    };
    let wanted = std::env::var(VARIABLE).ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.or_else(|| default.parse().ok()).unwrap_or_default();
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        // It would say so on stderr, where it has just failed, and panic over that.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // Fails only if it was set up before, which is as good.
    let _ = match format {
        LogFormat::Text => registry.with(lines.with_target(false).with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).try_init(),
    };
}
