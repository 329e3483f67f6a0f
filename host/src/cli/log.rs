//! Sets up logging to stderr: the filter and the format of log lines.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::log_lines::LogLines;
use super::start::LogFormat;

/// Environment variable with the log filter: `LEVEL` or `TARGET=LEVEL`, separated by commas, as in
/// `info,annulus=debug`. If it is absent or malformed, the verb and `-v` choose the filter.
const VARIABLE: &str = "ANNULUS_LOG";

/// A guard to keep until the process exits; dropping it writes the last lines.
pub(super) struct Logging(Option<LogLines>);

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            lines.flush();
        }
    }
}

/// Set up logging for this process. `serving` is true for verbs that run a node, which log by default.
pub(super) fn set_up(verbose: u8, serving: bool, format: LogFormat) -> Logging {
    let default = match (verbose, serving) {
        (0, false) => "off",
        (0, true) => "warn,annulus=info,openraft=off",
        (1, false) => "warn,annulus=info",
        (1, true) => "info,annulus=debug,openraft=warn",
        _ => "debug,annulus=trace",
    };
    let wanted = std::env::var(VARIABLE).ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.or_else(|| default.parse().ok()).unwrap_or_default();
    // Without a stderr log lines cannot be written.
    let Ok(to) = LogLines::to_stderr(format) else { return Logging(None) };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        // The layer reports its own errors with `eprintln!`, which panics in the task that logs if stderr fails.
        .log_internal_errors(false)
        .with_writer(to.clone());
    let registry = tracing_subscriber::registry();
    // This fails only if a subscriber is already set, which then receives the lines.
    let _ = match format {
        LogFormat::Text => registry.with(lines.with_target(false).with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).try_init(),
    };
    Logging(Some(to))
}
