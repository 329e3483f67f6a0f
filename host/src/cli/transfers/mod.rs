//! `transfers`: lists the transfers between nodes, and limits them.

mod limit;

use std::time::Duration;

use super::{CliError, Context, Table};
use annulus_admin::AdminRequest;
use annulus_admin::rows::TransferRow;

/// Interval between two listings of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// List the transfers between nodes, or limit them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// List the transfers every second until there are none
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show or change the limits of transfers
    Limit(limit::Args),
    /// Pause transfers that are not sealed yet: no further items are read, but new writes are still sent
    Pause(limit::Whose),
    /// Resume paused transfers
    Resume(limit::Whose),
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.verb {
        None => look(args.watch, context).await,
        Some(Verb::Limit(args)) => limit::run(args, context).await,
        Some(Verb::Pause(whose)) => limit::pause(whose, true, context).await,
        Some(Verb::Resume(whose)) => limit::pause(whose, false, context).await,
    }
}

async fn look(watch: bool, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    loop {
        let rows: Vec<TransferRow> = connection.ask(&AdminRequest::Transfers).await?;
        context.output.show(&rows, || render(&rows))?;
        if !watch || rows.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

pub(super) fn render(rows: &[TransferRow]) -> String {
    if rows.is_empty() {
        return "nothing moves".to_owned();
    }
    let mut table = Table::new(&[
        "module",
        ">partition",
        "kind",
        "from",
        "to",
        "state",
        ">items",
        ">done",
        ">bytes",
        ">bytes/s",
        "waits for",
        ">tries",
        "last error",
    ]);
    for row in rows {
        table.row([
            row.module.clone(),
            row.partition.to_string(),
            row.kind.clone(),
            row.from.clone(),
            row.to.clone(),
            row.state.clone(),
            match row.items_total {
                Some(total) => format!("{}/{total}", row.items_done),
                None => row.items_done.to_string(),
            },
            match row.items_total {
                // Writes during the transfer count as done items too, so the share may exceed 100.
                Some(total @ 1..) => format!("{}%", (row.items_done.saturating_mul(100) / total).min(100)),
                _ => "-".to_owned(),
            },
            row.bytes.to_string(),
            row.bytes_per_s.to_string(),
            match (&row.waiting_for, row.retry_in_ms) {
                (Some(what), Some(ms)) => format!("{what}, retries in {ms} ms"),
                (Some(what), None) => what.clone(),
                (None, _) => String::new(),
            },
            row.tries.to_string(),
            row.error.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}
