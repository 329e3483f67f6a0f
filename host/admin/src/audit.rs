//! The audit lines: who has changed what, and with which result. They are lines of the addressed node's log with the
//! target `annulus_admin::audit`; an operator is named by the SHA-256 of the key of its credential.

use std::fmt;

use annulus_core::ids::Digest;
use annulus_core::wording::one_line;

use super::AdminError;
use super::protocol::AdminRequest;

/// Longest text of a request in a line, in bytes.
const MAX_TEXT: usize = 200;

impl AdminRequest {
    /// Return what the request changes, without secrets; `None` if it changes nothing. Commands of modules are not
    /// changes of the cluster.
    pub(crate) fn change(&self) -> Option<String> {
        let of = |name: &Option<String>| name.clone().unwrap_or_else(|| "this node".to_owned());
        let staged = |stage: &bool| if *stage { " --stage" } else { "" };
        let text = match self {
            Self::Members
            | Self::Ring
            | Self::Transfers
            | Self::Status
            | Self::Locate { .. }
            | Self::Modules
            | Self::Describe { .. }
            | Self::Plan { .. }
            | Self::TransferLimits
            | Self::Recover { basis: None }
            | Self::Call(_)
            | Self::Coverage(_)
            | Self::CallWith(..)
            | Self::CoverageWith(..)
            | Self::Bench(_) => return None,
            Self::Token { ttl_ms, uses } => format!("token for {} node(s), {ttl_ms} ms", uses.unwrap_or(1)),
            Self::Join { address, stage, discard, .. } => {
                let discard = if *discard { " --discard" } else { "" };
                format!("join {address}{}{discard}", staged(stage))
            }
            Self::Leave { node, stage, .. } => format!("leave {}{}", of(node), staged(stage)),
            Self::Replace { old, new, stage, .. } => format!("replace {old} {new}{}", staged(stage)),
            Self::Remove { node, stage, .. } => format!("remove {node}{}", staged(stage)),
            Self::Down { node } => format!("down {node}"),
            Self::Commit { plan, .. } => format!("commit {}", plan.as_deref().unwrap_or("the present plan")),
            Self::ClearStaged => "clear".to_owned(),
            Self::Acknowledge { .. } => "status --acknowledge".to_owned(),
            Self::Deploy(request) => {
                format!("deploy {} ({} bytes)", request.name.as_deref().unwrap_or("a module"), request.bytes)
            }
            Self::Rollback { module, to, .. } => match to {
                Some(version) => format!("rollback {module} --to {version}"),
                None => format!("rollback {module}"),
            },
            Self::Undeploy { module } => format!("undeploy {module}"),
            Self::Recover { basis: Some(_) } => "recover --force".to_owned(),
            Self::SetTransfers { node, changes } => format!("transfers {changes:?} for {}", of(node)),
        };
        Some(one_line(&text, MAX_TEXT).into_owned())
    }
}

/// The name of an operator in an audit line.
struct Operator(Option<Digest>);

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "{key}"),
            None => f.write_str("unknown"),
        }
    }
}

/// Write the line of a change.
pub(crate) fn note<T>(operator: Option<Digest>, change: &str, result: &Result<T, AdminError>) {
    let operator = Operator(operator);
    match result {
        Ok(_) => tracing::info!(%operator, change, result = "done", "an operator's change"),
        Err(error) => {
            let (code, state) = (&error.code, &error.state);
            tracing::info!(%operator, change, result = %code, %state, "an operator's change");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_change_and_no_secret() {
        let join = AdminRequest::Join {
            address: "h:1\nforged".into(),
            token: "annulus1secret".into(),
            discard: true,
            stage: true,
            timeout_ms: 1,
        };
        let line = join.change().unwrap_or_default();
        assert!(line.starts_with("join h:1") && line.ends_with("--stage --discard"), "{line}");
        assert!(!line.contains("secret") && !line.contains('\n'), "{line}");
        let token = AdminRequest::Token { ttl_ms: 5, uses: None };
        assert_eq!(token.change().as_deref(), Some("token for 1 node(s), 5 ms"));
        assert_eq!(AdminRequest::Status.change(), None);
        assert_eq!(AdminRequest::Recover { basis: None }.change(), None);
        let leave = AdminRequest::Leave { node: None, stage: false, wait: true, timeout_ms: 1 };
        assert_eq!(leave.change().as_deref(), Some("leave this node"));
    }
}
