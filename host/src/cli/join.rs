//! `join`: makes the addressed node a member of another cluster.
//!
//! The node answers once the other cluster has admitted it, then restarts as part of that cluster with new
//! credentials. From then on the verb reconnects and polls until the node holds its share of the ring.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::duration::{millis, parse_duration, spoken};
use super::{CliError, Context};
use annulus_admin::rows::{MemberRow, RingRow, StatusRow};
use annulus_admin::{AdminError, AdminRequest};
use annulus_core::wording::counted;

/// Join this node to another node's cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The `--listen` address of a member of the cluster to join
    #[arg(value_name = "ADDR")]
    address: String,
    /// A token of that cluster, as `annulus token` prints it
    #[arg(long, env = "ANNULUS_TOKEN", hide_env_values = true)]
    token: String,
    /// Discard the modules and items of the cluster that this node is alone in
    #[arg(long)]
    discard: bool,
    /// Stage the join: the node owns nothing until `annulus commit` carries out what `annulus plan` shows
    #[arg(long)]
    stage: bool,
    /// Do not wait until the node holds its share of the ring
    #[arg(long)]
    no_wait: bool,
    /// Longest time to wait until the node holds its share of the ring
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    timeout: Duration,
}

/// Time without an answer after which a restarting node counts as gone; a restart is much shorter.
const SILENT: Duration = Duration::from_secs(30);
/// Interval between two polls of the joining node.
const ASK_AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.discard {
        context.confirm("The node discards every module and item of its own cluster.")?;
    }
    let deadline = Instant::now() + args.timeout;
    let connection = context.connect().await?;
    let before: StatusRow = connection.ask(&AdminRequest::Status).await?;
    let members: Vec<MemberRow> = connection.ask(&AdminRequest::Members).await?;
    // A node that already waits in that cluster does not restart when it receives another request to join it.
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
    progress.set("restarting in the other cluster", 0, 0);
    let mut last = "it has not restarted yet".to_owned();
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
                // A node that was removed again ends and never answers; a restart does not take this long.
                if answered.elapsed() >= SILENT {
                    let message = format!(
                        "{} was admitted, but has not answered for {}: {last}. Its log says why; it resumes the join \
                         when it is started again",
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
                format!("{} was admitted, but has not finished: {last}. It continues by itself", before.node);
            let error = AdminError::unknown("deadline-exceeded", message);
            return Err(CliError::Failed(AdminError { state: "applied".to_owned(), ..error }));
        }
        sleep(ASK_AGAIN).await;
    };
    drop(progress);
    context.output.show(&member, || match member.status.as_str() {
        "joining" => format!("{} waits to join; `annulus plan` shows the effect", member.node),
        _ => format!("{} is a member and owns {}", member.node, counted(member.owned, "partition")),
    })
}

/// Return the error of a join whose node had to leave, or was removed, before it had its share.
fn gone(node: &str, status: &str) -> CliError {
    let message = format!(
        "{node} was admitted, but is {status}: it was asked to leave, or was removed, in the meantime"
    );
    CliError::Failed(AdminError {
        state: "applied".to_owned(),
        ..AdminError::unknown("not-allowed", message)
    })
}

/// The joining node's progress, as one poll sees it.
enum Look {
    /// Not in the cluster, or without a share of the ring yet; the text says which.
    NotYet(String),
    /// The node is leaving again; holds its status.
    Goes(String),
    /// Admitted and waiting. `unreachable` is a text about the first member that it has no connection with,
    /// or empty.
    Joining { row: MemberRow, unreachable: String },
    /// Holds replicas, while `moving` partitions of the ring are still in transfer.
    Member { row: MemberRow, moving: usize },
}

/// Poll the joining node once. `own` is the cluster that it leaves; `None` if it has already left it.
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
        // The node is admitted, but the claimant has not given it a share yet.
        Some(row) if row.status == "member" => Ok(Look::NotYet("it has no share of the ring yet".to_owned())),
        Some(row) if row.status == "joining" => Ok(Look::Joining { row, unreachable }),
        Some(row) if row.status == "leaving" => Ok(Look::Goes(row.status)),
        Some(row) => Ok(Look::NotYet(format!("it is {}", row.status))),
        None => Ok(Look::NotYet("the cluster does not know it yet".to_owned())),
    }
}

/// Return a text about a member that the joining node has no connection with, or an empty one.
///
/// The cluster gives a node no share while the members cannot reach it, or it cannot reach them.
fn unreachable(node: &str, members: &[MemberRow]) -> String {
    let Some(other) = members.iter().find(|row| row.node != node && row.unreachable.is_some()) else {
        return String::new();
    };
    let own = members.iter().find(|row| row.node == node).map_or("", |row| row.listen.as_str());
    format!(
        ", and there is no connection with {} at {} ({}). Can the nodes there reach this one at {own}? If not, \
         restart it with another --listen, or with --advertise",
        other.node,
        other.listen,
        other.unreachable.as_deref().unwrap_or_default(),
    )
}
