//! Log lines, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::start::LogFormat;

/// Which lines are wanted: `ANNULUS_LOG`, or else what the verb and `-v` say.
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
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    // Fails only if it was set up before, which is as good.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
