//! Log lines, on stderr: which of them, and how they look.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::log_lines::LogLines;
use super::start::LogFormat;

/// Which lines are wanted: `LEVEL` or `TARGET=LEVEL`, with commas between, as `info,annulus=debug`.
/// Where it is absent or cannot be read, the verb and `-v` decide.
const VARIABLE: &str = "ANNULUS_LOG";

/// Logging for as long as it is kept: the last lines are written when it is dropped.
pub(super) struct Logging(Option<LogLines>);

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            lines.flush();
        }
    }
}

/// Sets logging up for this process. `serving` is for verbs that run a node.
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
    // Without a stderr there is nobody to tell.
    let Ok(to) = LogLines::to_stderr(format) else { return Logging(None) };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        // Told by a panic in whatever task logs.
        .log_internal_errors(false)
        .with_writer(to.clone());
    let registry = tracing_subscriber::registry();
    // Fails only if it was set up before, which is as good.
    let _ = match format {
        LogFormat::Text => registry.with(lines.with_target(false).with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).try_init(),
    };
    Logging(Some(to))
}
