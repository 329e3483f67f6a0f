//! `transfers limit`, `pause` and `resume`: show and change how much is transferred at once, and how fast.

use annulus_core::state::{HandoffChange, Rate};

use crate::cli::size::bytes_of;
use crate::cli::{CliError, Context, Table};
use annulus_admin::AdminRequest;
use annulus_admin::rows::{LimitRow, LimitsRow};

/// Show or change the limits of transfers
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Number of transfers that a node sends at once, or `default`
    #[arg(value_name = "N", value_parser = parse_limit)]
    limit: Option<Limit>,
    /// Apply N to the transfers that a node receives at once
    #[arg(long, requires = "limit")]
    incoming: bool,
    /// Bytes of items that a node sends per second: 500000, 10MB, 1.5MiB, `unlimited` (or `none`) or `default`
    #[arg(long, value_name = "BYTES/S", value_parser = parse_rate)]
    rate: Option<RateLimit>,
    #[command(flatten)]
    whose: Whose,
}

/// The node that a setting applies to.
#[derive(Debug, clap::Args)]
pub(super) struct Whose {
    /// Name of the node that this applies to [default: every node without a separate setting]
    #[arg(long = "for", value_name = "NODE")]
    node: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u16>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RateLimit(Option<Rate>);

fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "default" => Ok(Limit(None)),
        number => number
            .parse()
            .map(|number| Limit(Some(number)))
            .map_err(|_| "a number of transfers, or `default`".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<RateLimit, String> {
    match text {
        "default" => return Ok(RateLimit(None)),
        "unlimited" | "none" => return Ok(RateLimit(Some(Rate::Unlimited))),
        _ => {}
    }
    let bytes = bytes_of(text).map_err(|error| format!("{error}; or `unlimited`, or `default`"))?;
    Ok(RateLimit(Some(Rate::Bytes(bytes))))
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut changes = Vec::new();
    changes.extend(args.limit.map(|Limit(limit)| match args.incoming {
        true => HandoffChange::Incoming(limit),
        false => HandoffChange::Outgoing(limit),
    }));
    changes.extend(args.rate.map(|RateLimit(rate)| HandoffChange::BytesPerSecond(rate)));
    ask(args.whose, changes, context).await
}

pub(super) async fn pause(whose: Whose, paused: bool, context: &Context) -> Result<(), CliError> {
    ask(whose, vec![HandoffChange::Paused(paused)], context).await
}

async fn ask(whose: Whose, changes: Vec<HandoffChange>, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let request = if changes.is_empty() {
        AdminRequest::TransferLimits
    } else {
        AdminRequest::SetTransfers { node: whose.node.clone(), changes: changes.clone() }
    };
    let mut limits: LimitsRow = connection.ask(&request).await?;
    if changes.is_empty()
        && let Some(node) = &whose.node
    {
        limits.nodes.retain(|row| row.node.as_ref() == Some(node));
        if limits.nodes.is_empty() {
            return Err(CliError::Other(format!("no member {node}")));
        }
    }
    context.output.show(&limits, || render(&limits))
}

fn render(limits: &LimitsRow) -> String {
    let mut table = Table::new(&["node", ">sent at once", ">taken in at once", ">bytes/s", "", "set here"]);
    for row in std::iter::once(&limits.cluster).chain(&limits.nodes) {
        table.row(cells(row));
    }
    table.to_string()
}

fn cells(row: &LimitRow) -> [String; 6] {
    [
        row.node.clone().unwrap_or_else(|| "(cluster)".to_owned()),
        row.outgoing.to_string(),
        row.incoming.to_string(),
        row.bytes_per_second.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string()),
        if row.paused { "paused".to_owned() } else { String::new() },
        row.set.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_and_rates_are_parsed_and_malformed_ones_are_refused() {
        assert_eq!(parse_limit("2").unwrap(), Limit(Some(2)));
        assert_eq!(parse_limit("default").unwrap(), Limit(None));
        assert_eq!(parse_rate("10MB").unwrap(), RateLimit(Some(Rate::Bytes(10_000_000))));
        assert_eq!(parse_rate("4096").unwrap(), RateLimit(Some(Rate::Bytes(4096))));
        assert_eq!(parse_rate("unlimited").unwrap(), RateLimit(Some(Rate::Unlimited)));
        assert_eq!(parse_rate("none").unwrap(), RateLimit(Some(Rate::Unlimited)));
        assert_eq!(parse_rate("1.5MB").unwrap(), RateLimit(Some(Rate::Bytes(1_500_000))));
        assert_eq!(parse_rate("0.25KiB").unwrap(), RateLimit(Some(Rate::Bytes(256))));
        assert_eq!(parse_rate("default").unwrap(), RateLimit(None));
        assert!(parse_limit("-1").is_err() && parse_limit("70000").is_err() && parse_limit("").is_err());
        for bad in ["", "MB", "1.5.0MB", ".5MB", "1.MB", "10XB", "99999999999GiB", "1.5.MB", "-1"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
