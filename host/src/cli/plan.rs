//! `plan`: shows the effect of the staged changes.

use std::collections::BTreeMap;

use owo_colors::{OwoColorize, Stream};

use super::{CliError, Context, Table};
use annulus_admin::AdminRequest;
use annulus_admin::plan_rows::{ChangeRow, PlanRow};

/// Show the effect of the staged changes: the nodes' future shares, the moves, and warnings.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: PlanRow = connection.ask(&AdminRequest::Plan { shown: true, of: None }).await?;
    context.output.show(&row, || render(&row))
}

/// Format a change as its verb is typed: `leave NODE`, `replace OLD NEW`.
pub(super) fn change_text(row: &ChangeRow) -> String {
    match &row.by {
        Some(by) => format!("{} {} {by}", row.change, row.node),
        None => format!("{} {}", row.change, row.node),
    }
}

pub(super) fn render(row: &PlanRow) -> String {
    let Some(plan) = &row.plan else {
        return "nothing is staged; pass --stage to join, leave, replace or remove".to_owned();
    };
    let mut text = format!("plan {plan}\n");
    for change in &row.changes {
        text.push_str(&format!("  {}\n", change_text(change)));
    }
    text.push('\n');
    text.push_str(&nodes(row));
    text.push('\n');
    text.push_str(&moves(row));
    text.push_str(&warnings(row));
    text.push_str(&format!("\n`annulus commit {plan}` carries it out, `annulus clear` discards it"));
    text
}

fn amount(known: Option<u64>) -> String {
    known.map_or_else(|| "unknown".to_owned(), |count| count.to_string())
}

fn nodes(row: &PlanRow) -> String {
    let mut table = Table::new(&[
        "node",
        "status",
        ">owned",
        ">will own",
        ">replicas",
        ">will hold",
        ">items in",
        ">bytes in",
        ">items out",
        ">bytes out",
    ]);
    for node in &row.nodes {
        let status = if node.status == node.becomes {
            node.status.clone()
        } else {
            format!("{} -> {}", node.status, node.becomes)
        };
        table.row([
            node.node.clone(),
            status,
            node.owned.to_string(),
            node.will_own.to_string(),
            node.replicas.to_string(),
            node.will_hold.to_string(),
            amount(node.items_in),
            amount(node.bytes_in),
            amount(node.items_out),
            amount(node.bytes_out),
        ]);
    }
    table.to_string()
}

/// Format the partitions that get another owner, summed by old and new owner.
fn moves(row: &PlanRow) -> String {
    #[derive(Default)]
    struct Sum {
        partitions: usize,
        amount: Option<(u64, u64)>,
    }
    let mut pairs: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for one in row.moves.iter().filter(|one| one.owner) {
        let sum = pairs.entry((&one.from, &one.to)).or_insert(Sum { partitions: 0, amount: Some((0, 0)) });
        sum.partitions += 1;
        sum.amount = sum
            .amount
            .zip(one.items.zip(one.bytes))
            .map(|((items, bytes), (more, size))| (items + more, bytes + size));
    }
    if pairs.is_empty() {
        return "no partition changes its owner\n".to_owned();
    }
    let mut table = Table::new(&["from", "to", ">partitions", ">items", ">bytes"]);
    for ((from, to), sum) in pairs {
        table.row([
            from.to_owned(),
            to.to_owned(),
            sum.partitions.to_string(),
            amount(sum.amount.map(|(items, _)| items)),
            amount(sum.amount.map(|(_, bytes)| bytes)),
        ]);
    }
    table.to_string()
}

/// Format the plan's warnings, one per line.
pub(super) fn warnings(row: &PlanRow) -> String {
    let line = |message: &str| {
        let word = "warning".if_supports_color(Stream::Stdout, |word| word.yellow()).to_string();
        format!("{word}: {message}\n")
    };
    row.warnings.iter().map(|warning| line(&warning.message)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_admin::plan_rows::{MoveRow, ShareRow, WarningRow};

    fn node(node: &str, becomes: &str, items_out: Option<u64>) -> ShareRow {
        ShareRow {
            node: node.to_owned(),
            status: "member".to_owned(),
            becomes: becomes.to_owned(),
            owned: 4,
            will_own: 0,
            replicas: 8,
            will_hold: 0,
            items_in: Some(0),
            bytes_in: Some(0),
            items_out,
            bytes_out: items_out.map(|items| items * 10),
        }
    }

    fn moved(partition: u16, items: Option<u64>) -> MoveRow {
        let bytes = items.map(|items| items * 10);
        let (from, to) = ("a@h".to_owned(), "b@h".to_owned());
        MoveRow { partition, from, to, owner: true, under_way: false, items, bytes }
    }

    #[test]
    fn an_unknown_amount_is_shown_as_unknown_and_not_as_zero() {
        let warning = WarningRow { code: "node-down".into(), message: "a@h is down: 2 moves wait".into() };
        let mut row = PlanRow {
            plan: Some("12ab34cd".into()),
            epoch: 7,
            changes: vec![ChangeRow { change: "replace".into(), node: "a@h".into(), by: Some("b@h".into()) }],
            nodes: vec![node("a@h", "leaving", Some(7)), node("b@h", "member", None)],
            moves: vec![moved(1, Some(3)), moved(2, Some(4))],
            warnings: vec![warning],
            shown: None,
        };
        let text = render(&row);
        for part in ["plan 12ab34cd", "  replace a@h b@h", "member -> leaving", "warning: a@h is down"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.contains("a@h   b@h           2      7     70"), "{text}");
        assert!(text.contains("unknown"), "{text}");
        row.moves[1] = moved(2, None);
        let text = render(&row);
        assert!(text.contains("2  unknown  unknown"), "{text}");
        row.plan = None;
        assert!(render(&row).contains("nothing is staged"));
    }
}
