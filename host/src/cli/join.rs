//! `join`: said to the node that joins.
//!
//! Its node answers when it was admitted, then starts anew as part of the other cluster, with
//! new credentials. So from there on it is asked afresh until it has its share of the ring.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::duration::{millis, parse_duration, spoken};
use super::{CliError, Context};
use annulus_admin::rows::{MemberRow, RingRow, StatusRow};
use annulus_admin::{AdminError, AdminRequest};
use annulus_core::wording::counted;

/// Make this node part of another node's cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `--listen` address of a member of the cluster to join
    #[arg(value_name = "ADDR")]
    address: String,
    /// What `annulus token` printed at that cluster
    #[arg(long, env = "ANNULUS_TOKEN", hide_env_values = true)]
    token: String,
    /// Give up the modules and items that the node's own cluster of one holds
    #[arg(long)]
    discard: bool,
    /// Own nothing there until a plan takes it in: look at `annulus plan`, then `annulus commit`
    #[arg(long)]
    stage: bool,
    /// Do not wait until it holds its share
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it holds its share
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    timeout: Duration,
}

/// A node that is started anew answers long before this.
const SILENT: Duration = Duration::from_secs(30);
/// How often a node that starts anew is asked whether it is there.
const ASK_AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.discard {
        context.confirm("The node gives up every module and item of its own cluster.")?;
    }
    let deadline = Instant::now() + args.timeout;
    let connection = context.connect().await?;
    let before: StatusRow = connection.ask(&AdminRequest::Status).await?;
    let members: Vec<MemberRow> = connection.ask(&AdminRequest::Members).await?;
    // Said again to a node that waits there already, it starts nothing anew.
    let waits = members.iter().any(|row| row.node == before.node && row.status == "joining");
    let own = (!waits).then(|| before.cluster.clone());
    let request = AdminRequest::Join {
        address: args.address,
        token: args.token,
        discard: args.discard,
        stage: args.stage,
        timeout_ms: millis(args.timeout),
    };
    let () = connection.ask(&request).await?;
    drop(connection);

    let mut progress = context.output.progress();
    progress.set("starting anew in the other cluster", 0, 0);
    let mut last = "it has not started anew yet".to_owned();
    let mut answered = Instant::now();
    let member = loop {
        let look = timeout_at(deadline, look(&before.node, own.as_deref(), context)).await;
        if matches!(look, Ok(Ok(_))) {
            answered = Instant::now();
        }
        match look {
            Ok(Ok(Look::Joining { row, .. })) if args.stage => break row,
            Ok(Ok(Look::Joining { row, unreachable })) => {
                last = format!("it is {}{unreachable}", row.status);
                progress.set(&last, 0, 0);
            }
            Ok(Ok(Look::Member { row, moving })) if args.no_wait || moving == 0 => break row,
            Ok(Ok(Look::Member { moving, .. })) => {
                last = format!("{} still to change hands", counted(moving, "partition"));
                progress.set(&last, 0, 0);
            }
            Ok(Ok(Look::Goes(status))) => return Err(gone(&before.node, &status)),
            Ok(Ok(Look::NotYet(what))) => {
                progress.set(&what, 0, 0);
                last = what;
            }
            Ok(Err(error)) => {
                last = error.to_string();
                // It ends where it was removed again, and does not start anew for so long.
                if answered.elapsed() >= SILENT {
                    let message = format!(
                        "{} was admitted, and has not answered for {}: {last}. Its log says why; it goes on with the \
                         join when it is started again",
                        before.node,
                        spoken(SILENT)
                    );
                    let error = AdminError::unknown("unreachable", message);
                    return Err(CliError::Failed(AdminError { state: "applied".to_owned(), ..error }));
                }
            }
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            let message =
                format!("{} was admitted, but is not settled yet: {last}. It goes on by itself", before.node);
            let error = AdminError::unknown("deadline-exceeded", message);
            return Err(CliError::Failed(AdminError { state: "applied".to_owned(), ..error }));
        }
        sleep(ASK_AGAIN).await;
    };
    drop(progress);
    context.output.show(&member, || match member.status.as_str() {
        "joining" => format!("{} waits to join; `annulus plan` shows what that would do", member.node),
        _ => format!("{} is a member and owns {}", member.node, counted(member.owned, "partition")),
    })
}

/// The error of a join whose node was told to leave meanwhile.
fn gone(node: &str, status: &str) -> CliError {
    let message =
        format!("{node} was admitted, and is {status}: somebody had it leave, or removed it, meanwhile");
    CliError::Failed(AdminError {
        state: "applied".to_owned(),
        ..AdminError::unknown("not-allowed", message)
    })
}

enum Look {
    NotYet(String),
    /// It leaves again; its status.
    Goes(String),
    /// With what is to be said of members that it cannot reach.
    Joining {
        row: MemberRow,
        unreachable: String,
    },
    Member {
        row: MemberRow,
        moving: usize,
    },
}

/// `own`: the cluster that it is to be gone from.
async fn look(node: &str, own: Option<&str>, context: &Context) -> Result<Look, CliError> {
    let connection = context.connect().await?;
    let status: StatusRow = connection.ask(&AdminRequest::Status).await?;
    if own == Some(status.cluster.as_str()) {
        return Ok(Look::NotYet("it is still in its own cluster".to_owned()));
    }
    let members: Vec<MemberRow> = connection.ask(&AdminRequest::Members).await?;
    let ring: RingRow = connection.ask(&AdminRequest::Ring).await?;
    let unreachable = unreachable(node, &members);
    match members.into_iter().find(|row| row.node == node && row.status != "removed") {
        Some(row) if row.status == "member" && row.replicas > 0 => {
            let moving = ring.partitions.iter().filter(|partition| !partition.pending.is_empty()).count();
            Ok(Look::Member { row, moving })
        }
        // Admitted, but the claimant has not given it a share yet.
        Some(row) if row.status == "member" => Ok(Look::NotYet("it has no share of the ring yet".to_owned())),
        Some(row) if row.status == "joining" => Ok(Look::Joining { row, unreachable }),
        Some(row) if row.status == "leaving" => Ok(Look::Goes(row.status)),
        Some(row) => Ok(Look::NotYet(format!("it is {}", row.status))),
        None => Ok(Look::NotYet("the cluster does not know it yet".to_owned())),
    }
}

/// Why a node that is joining may stay so: as long as others cannot reach it, nor it them, the cluster
/// waits for it.
fn unreachable(node: &str, members: &[MemberRow]) -> String {
    let Some(other) = members.iter().find(|row| row.node != node && row.unreachable.is_some()) else {
        return String::new();
    };
    let own = members.iter().find(|row| row.node == node).map_or("", |row| row.listen.as_str());
    format!(
        ", and there is no connection with {} at {} ({}). Can nodes there reach this one at {own}? If not, start it \
         again with another --listen, or with --advertise",
        other.node,
        other.listen,
        other.unreachable.as_deref().unwrap_or_default(),
    )
}
