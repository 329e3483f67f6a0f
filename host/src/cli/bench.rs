//! `bench`: generates load inside the addressed node.

use std::time::Duration;

use super::duration::{millis, parse_duration};
use super::{CliError, Context, Table};
use annulus_admin::rows::{BenchRow, Measured};
use annulus_admin::{AdminRequest, BenchRequest, BenchTarget};

/// Generate closed-loop load inside the addressed node and measure latency percentiles.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the module
    module: String,
    /// Commands of the module and their shares of the requests
    #[arg(long, default_value = "put=50,get=50", value_parser = mix)]
    mix: Mix,
    /// Number of requests in flight at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: u32,
    /// Duration of the run
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Which keys to request, by the node that owns them
    #[arg(long, value_enum, default_value_t)]
    target: BenchTarget,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,
    /// Length of a value in bytes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    value_bytes: u32,
    /// Also measure an echo over the request lanes, a native vnode and a wasm vnode within the node's process. The
    /// native vnode keeps its items in memory, as `guests/memkv` does
    #[arg(long)]
    baseline: bool,
}

/// Commands of a module, each with its share of the requests, from 1 to 10000.
#[derive(Clone, Debug, PartialEq)]
struct Mix(Vec<(String, u32)>);

fn mix(text: &str) -> Result<Mix, String> {
    let share = |part: &str| {
        let (name, share) = part.split_once('=').unwrap_or((part, "1"));
        match share.parse::<u32>() {
            Ok(share) if share > 0 && share <= 10_000 && !name.is_empty() => Ok((name.to_owned(), share)),
            _ => Err(format!("{part:?} is not COMMAND=SHARE, with a share from 1 to 10000")),
        }
    };
    text.split(',').map(|part| share(part.trim())).collect::<Result<_, _>>().map(Mix)
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let request = AdminRequest::Bench(BenchRequest {
        module: args.module,
        mix: args.mix.0,
        concurrency: args.concurrency,
        duration_ms: millis(args.duration),
        target: args.target,
        keys: args.keys,
        value_bytes: args.value_bytes,
        baseline: args.baseline,
    });
    let row: BenchRow = connection.ask(&request).await?;
    context.output.show(&row, || render(&row))
}

fn render(row: &BenchRow) -> String {
    let mut table =
        Table::new(&["", ">ops", ">errors", ">ops/s", ">p50 µs", ">p99 µs", ">p99.9 µs", ">max µs"]);
    let mut line = |name: &str, measured: &Measured| {
        table.row([
            name.to_owned(),
            measured.ops.to_string(),
            measured.errors.to_string(),
            format!("{:.0}", measured.ops_per_s),
            measured.p50_us.to_string(),
            measured.p99_us.to_string(),
            measured.p999_us.to_string(),
            measured.max_us.to_string(),
        ]);
    };
    line("load", &row.load);
    if let Some(echo) = &row.lane_echo {
        line("lane echo", echo);
    }
    if let Some(native) = &row.native {
        line("one native vnode", native);
    }
    if let Some(wasm) = &row.wasm {
        line("one wasm vnode", wasm);
    }
    let mut text = table.to_string();
    for (code, count) in &row.load.error_codes {
        text.push_str(&format!("{count} x {code}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mix_is_parsed_and_malformed_ones_are_refused() {
        assert_eq!(mix("put=50, get=50").unwrap().0, [("put".to_owned(), 50), ("get".to_owned(), 50)]);
        assert_eq!(mix("ping").unwrap().0, [("ping".to_owned(), 1)]);
        for bad in ["", "put=", "=5", "put=0", "put=-1", "put=1,,get=1"] {
            assert!(mix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn results_are_shown_side_by_side() {
        let load = Measured { ops: 10, ops_per_s: 5.4, p50_us: 7, max_us: 1234, ..Measured::default() };
        let row = BenchRow { lane_echo: Some(load.clone()), load, ..BenchRow::default() };
        assert_eq!(
            render(&row),
            "           OPS  ERRORS  OPS/S  P50 µS  P99 µS  P99.9 µS  MAX µS\n\
             load        10       0      5       7       0         0    1234\n\
             lane echo   10       0      5       7       0         0    1234\n"
        );
    }
}
