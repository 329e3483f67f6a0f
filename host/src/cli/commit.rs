//! `commit`: carries out what is staged.

use super::patience::Patience;
use super::plan::change_text;
use super::{CliError, Context};
use annulus_admin::plan_rows::{CommittedRow, PlanRow};
use annulus_admin::{AdminError, AdminRequest};

/// Carry out what is staged, as one rebalancing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `annulus plan` calls it; refused if it is another by now. Without, what that node has
    /// shown last, or else what is staged
    #[arg(value_name = "PLAN")]
    plan: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let now: PlanRow = connection.ask(&AdminRequest::Plan { shown: false, of: None }).await?;
    let Some(id) = &now.plan else {
        let message = "nothing is staged: say join, leave, replace or remove with --stage first";
        return Err(AdminError::not_applied("nothing-staged", message).into());
    };
    if args.plan.as_ref().or(now.shown.as_ref()).is_some_and(|meant| meant != id) {
        let message = "the plan changed meanwhile: look at `annulus plan` again, then commit";
        return Err(AdminError::not_applied("plan-changed", message).into());
    }
    if let Some(loss) = now.warnings.iter().find(|warning| warning.code == "possible-loss") {
        context.confirm(&format!("{}.", loss.message))?;
    } else if now.changes.iter().any(|change| change.change == "remove") {
        context.confirm("A removed node never comes back, and its peers refuse it from then on.")?;
    }
    let request = AdminRequest::Commit {
        plan: Some(id.clone()),
        wait: args.patience.waits(),
        timeout_ms: args.patience.timeout_ms(),
    };
    let row: CommittedRow = connection.ask(&request).await?;
    context.output.show(&row, || render(&row))
}

pub(super) fn render(row: &CommittedRow) -> String {
    let mut text = String::new();
    for change in &row.changes {
        text.push_str(&format!("{}\n", change_text(change)));
    }
    let moved = match (row.moved, row.settled) {
        (0, _) => "no partition had to change hands".to_owned(),
        (moved, true) => format!("{moved} partitions have changed hands"),
        (moved, false) => format!("{moved} partitions change hands; `annulus transfers` shows what moves"),
    };
    text.push_str(&moved);
    if !row.possible_loss.is_empty() {
        let count = row.possible_loss.len();
        text.push_str(&format!(
            "\npossible loss: what only the removed node held of {count} partitions; `annulus status` shows it"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_admin::plan_rows::ChangeRow;

    #[test]
    fn what_was_done_is_said_with_what_may_be_lost() {
        let mut row = CommittedRow {
            plan: "12ab34cd".into(),
            index: 9,
            changes: vec![ChangeRow { change: "remove".into(), node: "a@h".into(), by: None }],
            moved: 3,
            possible_loss: vec![1, 5],
            settled: false,
        };
        let text = render(&row);
        assert!(text.starts_with("remove a@h\n3 partitions change hands;"), "{text}");
        assert!(text.contains("possible loss") && text.contains("2 partitions"), "{text}");
        (row.settled, row.possible_loss) = (true, Vec::new());
        assert_eq!(render(&row), "remove a@h\n3 partitions have changed hands");
    }
}
