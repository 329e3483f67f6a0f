//! `commit`: carries out the staged changes.

use super::patience::Patience;
use super::plan::change_text;
use super::{CliError, Context};
use annulus_admin::plan_rows::{CommittedRow, PlanRow};
use annulus_admin::{AdminError, AdminRequest};
use annulus_core::wording::counted;

/// Carry out the staged changes as one rebalancing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id of the plan, as `annulus plan` shows it; the commit is refused if the plan has changed since
    /// [default: the plan that the addressed node showed last, or else the current one]
    #[arg(value_name = "PLAN")]
    plan: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let now: PlanRow = connection.ask(&AdminRequest::Plan { shown: false, of: None }).await?;
    let Some(id) = &now.plan else {
        let message = "nothing is staged: run join, leave, replace or remove with --stage first";
        return Err(AdminError::not_applied("nothing-staged", message).into());
    };
    if args.plan.as_ref().or(now.shown.as_ref()).is_some_and(|meant| meant != id) {
        let message = "the plan has changed since it was shown: run `annulus plan` again, then commit";
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
    let mut done = Vec::new();
    if row.taken_over > 0 {
        let taken = counted(row.taken_over, "partition");
        done.push(format!(
            "{taken} that it owned went to others at once: there was no node to hand them over"
        ));
    }
    let moved = counted(row.moved, "partition");
    match (row.moved, row.settled) {
        (0, _) if row.taken_over > 0 => {}
        (0, _) => done.push("no partition had to change hands".to_owned()),
        (1, true) => done.push(format!("{moved} has changed hands")),
        (_, true) => done.push(format!("{moved} have changed hands")),
        (_, false) => done.push(format!("{moved} to change hands; `annulus transfers` shows what moves")),
    }
    text.push_str(&done.join("\n"));
    if !row.possible_loss.is_empty() {
        let count = counted(row.possible_loss.len(), "partition");
        text.push_str(&format!(
            "\npossible loss: items of {count} that only the removed node held; `annulus status` lists them"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_admin::plan_rows::ChangeRow;

    #[test]
    fn the_answer_names_the_moves_and_the_possible_loss() {
        let mut row = CommittedRow {
            plan: "12ab34cd".into(),
            index: 9,
            changes: vec![ChangeRow { change: "remove".into(), node: "a@h".into(), by: None }],
            moved: 3,
            taken_over: 0,
            possible_loss: vec![1, 5],
            settled: false,
        };
        let text = render(&row);
        assert!(text.starts_with("remove a@h\n3 partitions to change hands;"), "{text}");
        assert!(text.contains("possible loss") && text.contains("2 partitions"), "{text}");
        (row.settled, row.possible_loss) = (true, Vec::new());
        assert_eq!(render(&row), "remove a@h\n3 partitions have changed hands");
        row.moved = 1;
        assert_eq!(render(&row), "remove a@h\n1 partition has changed hands");
        (row.moved, row.taken_over) = (0, 21);
        let text = render(&row);
        assert!(text.starts_with("remove a@h\n21 partitions that it owned went to others"), "{text}");
        assert!(!text.contains("no partition"), "{text}");
    }
}
