//! Runs a command that goes to every partition and shows each batch of the answer as it arrives.

use std::time::{Duration, Instant};

use ciborium::Value;
use serde_json::json;

use super::super::duration::spoken;
use super::super::{CliError, Connection, Context};
use annulus_admin::rows::CoverageRow;
use annulus_admin::{AdminError, AdminReply, AdminRequest, CallRequest, decode};
use annulus_core::request::Demands;
use annulus_core::wording::{counted, ranges};
use annulus_values::Type;
use annulus_values::{to_json, to_text};

pub(super) async fn run(
    connection: &Connection,
    request: CallRequest,
    demands: Demands,
    context: &Context,
) -> Result<(), CliError> {
    let request = match demands == Demands::default() {
        true => AdminRequest::Coverage(request),
        false => AdminRequest::CoverageWith(request, demands),
    };
    let mut exchange = connection.send(&request).await?;
    let output = &context.output;
    let mut shown = 0usize;
    let mut read_on = Duration::ZERO;
    loop {
        let next = exchange.next().await.map_err(|error| too_slow(error, read_on))?;
        let began = Instant::now();
        match next {
            AdminReply::Progress { .. } => {}
            AdminReply::Batch { partition, node, values } => {
                let values: Vec<Value> =
                    values.iter().map(|value| decode(value)).collect::<Result<_, _>>()?;
                if output.is_json() {
                    let values: Vec<_> = values.iter().map(to_json).collect();
                    output
                        .line(&json!({"partition": partition, "node": node, "values": values}).to_string())?;
                } else if !values.is_empty() {
                    output.line(&line(partition, &node, &values))?;
                }
                shown += values.len();
                read_on = read_on.max(began.elapsed());
            }
            AdminReply::Done(bytes) => {
                let row: CoverageRow = decode(&bytes)?;
                if output.is_json() {
                    output.line(&json!(row).to_string())?;
                } else if row.complete {
                    output.note(&format!("{}, every partition answered", counted(shown, "value")));
                } else {
                    output.note(&incomplete(shown, &row));
                }
                return if row.complete { Ok(()) } else { Err(CliError::Shown) };
            }
            AdminReply::Error(error) => return Err(CliError::Failed(error)),
        }
    }
}

/// Shortest pause in reading the output, for example in a pager, after which the node may cancel the stream.
const SLOW: Duration = Duration::from_secs(5);

/// Explain a lost connection by a slow reader, if the output stalled long enough.
///
/// `read_on` is the longest time that showing one batch took.
fn too_slow(error: CliError, read_on: Duration) -> CliError {
    match error {
        CliError::Failed(error) if error.code == "connection-lost" && read_on >= SLOW => {
            let message = format!(
                "the answer broke off because the reader of this output paused for {} ({}); write the output to a \
                 file first. A command that only reads has changed nothing",
                spoken(read_on),
                error.message,
            );
            CliError::Failed(AdminError { message, ..error })
        }
        error => error,
    }
}

/// Format a batch as the riak_core tutorial does: partition, node, values.
fn line(partition: u16, node: &str, values: &[Value]) -> String {
    let values: Vec<_> = values.iter().map(|value| to_text(value, &Type::Null)).collect();
    format!("{partition:>4}  {node}  [{}]", values.join(", "))
}

fn incomplete(shown: usize, row: &CoverageRow) -> String {
    let noun = |partitions: &[u16]| if partitions.len() == 1 { "partition" } else { "partitions" };
    let lost = match &row.lost[..] {
        [] => String::new(),
        lost => {
            format!("; the guests of {} {} ended, and their items are lost", noun(lost), ranges(lost))
        }
    };
    let unsure = match &row.unsure[..] {
        [] => String::new(),
        unsure => format!("; the outcome in {} {} is unknown", noun(unsure), ranges(unsure)),
    };
    format!(
        "incomplete: {}, but {} {} did not answer{lost}{unsure}",
        counted(shown, "value"),
        noun(&row.missing),
        ranges(&row.missing)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_is_named_as_the_cause_of_a_lost_connection() {
        let lost = || CliError::Failed(AdminError::unknown("connection-lost", "no answer: cancelled"));
        let told = too_slow(lost(), Duration::from_secs(65)).to_string();
        assert!(told.contains("65 s") && told.contains("cancelled"), "{told}");
        assert_eq!(too_slow(lost(), Duration::from_millis(10)).to_string(), lost().to_string());
    }

    #[test]
    fn a_batch_looks_as_in_the_tutorial() {
        let values = [Value::Text("k1".into()), Value::Integer(7.into()), Value::Null];
        assert_eq!(line(31, "rc_example2@127.0.0.1", &values), "  31  rc_example2@127.0.0.1  [k1, 7, null]");
    }
}
