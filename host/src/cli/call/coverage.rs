//! A command that goes to every partition: answers in batches, as they come.

use ciborium::Value;
use serde_json::json;

use super::super::{CliError, Connection, Context};
use annulus_admin::rows::CoverageRow;
use annulus_admin::{AdminReply, AdminRequest, CallRequest, decode};
use annulus_values::Type;
use annulus_values::{to_json, to_text};

pub(super) async fn run(
    connection: &Connection,
    request: CallRequest,
    context: &Context,
) -> Result<(), CliError> {
    let mut exchange = connection.send(&AdminRequest::Coverage(request)).await?;
    let output = &context.output;
    let mut shown = 0usize;
    loop {
        match exchange.next().await? {
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
            }
            AdminReply::Done(bytes) => {
                let row: CoverageRow = decode(&bytes)?;
                if output.is_json() {
                    output.line(&json!(row).to_string())?;
                } else if row.complete {
                    output.note(&format!("{shown} values, every partition answered"));
                } else {
                    output.note(&incomplete(shown, &row));
                }
                return if row.complete { Ok(()) } else { Err(CliError::Shown) };
            }
            AdminReply::Error(error) => return Err(CliError::Failed(error)),
        }
    }
}

/// As in the tutorial's list: partition, node, values.
fn line(partition: u16, node: &str, values: &[Value]) -> String {
    let values: Vec<_> = values.iter().map(|value| to_text(value, &Type::Null)).collect();
    format!("{partition:>4}  {node}  [{}]", values.join(", "))
}

fn incomplete(shown: usize, row: &CoverageRow) -> String {
    let missing: Vec<String> = row.missing.iter().map(u16::to_string).collect();
    let lost = match &row.lost[..] {
        [] => String::new(),
        lost => {
            let lost: Vec<String> = lost.iter().map(u16::to_string).collect();
            format!("; the guests of partitions {} ended and took their items with them", lost.join(", "))
        }
    };
    format!("incomplete: {shown} values, but partitions {} did not answer{lost}", missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_looks_as_in_the_tutorial() {
        let values = [Value::Text("k1".into()), Value::Integer(7.into()), Value::Null];
        assert_eq!(line(31, "rc_example2@127.0.0.1", &values), "  31  rc_example2@127.0.0.1  [k1, 7, null]");
    }
}
