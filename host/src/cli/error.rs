//! How a verb fails.

use std::process::ExitCode;

use serde_json::{Value, json};

use annulus_admin::{AdminError, Malformed};
use annulus_values::to_json;

/// How a verb fails, with its exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The node did not do it. Exit code 1.
    #[error("{0}")]
    Failed(#[from] AdminError),
    /// Something on this side stands in the way. Exit code 1.
    #[error("{0}")]
    Other(String),
    /// The words make no sense. Nothing was done. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No node could be asked. Nothing was done. Exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The verb has shown itself what went wrong. Exit code 1.
    #[error("failed")]
    Shown,
    /// Whoever read the answer has read enough, as `head` does, and wants no word about it. Exit
    /// code 0.
    #[error("nobody reads the answer any more")]
    ReaderGone,
}

impl CliError {
    /// 1 the request failed, 2 bad usage, 3 cannot reach the node.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) | Self::Other(_) | Self::Shown => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::ReaderGone => 0,
        })
    }

    /// `{"error": {"code", "message", "state"}}`.
    pub fn to_json(&self) -> Value {
        let (code, state) = match self {
            Self::Failed(error) => {
                let mut body = json!({"code": error.code, "message": error.message, "state": error.state});
                if let Some(refusal) = &error.refusal {
                    let detail = refusal.detail.as_ref().map(|detail| match annulus_admin::decode(detail) {
                        Ok(value) => to_json(&value),
                        Err(_) => to_json(&ciborium::Value::Bytes(detail.to_vec())),
                    });
                    body["refusal"] =
                        json!({"code": refusal.code, "message": refusal.message, "detail": detail});
                }
                return json!({ "error": body });
            }
            Self::Other(_) | Self::Shown | Self::ReaderGone => ("failed", "not-applied"),
            Self::Usage(_) => ("usage", "not-applied"),
            Self::Unreachable(_) => ("unreachable", "not-applied"),
        };
        json!({"error": {"code": code, "message": self.to_string(), "state": state}})
    }

    /// The lines that people see on stderr.
    pub fn to_text(&self) -> String {
        let Self::Failed(error) = self else { return format!("error: {self}") };
        let mut text = format!("error: {}", error.message);
        if let Some(refusal) = &error.refusal {
            text.push_str(&format!("\n  the module refused it: {} ({})", refusal.message, refusal.code));
        }
        text.push_str(&format!("\n  code: {}, state: {}", error.code, error.state));
        text
    }
}

impl From<Malformed> for CliError {
    fn from(error: Malformed) -> Self {
        Self::Other(format!("the node's answer cannot be read ({error}); is it of another version?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_admin::RefusalDetail;

    #[test]
    fn a_refusal_is_shown_whole() {
        let error = CliError::Failed(AdminError {
            refusal: Some(Box::new(RefusalDetail {
                code: "out-of-stock".into(),
                message: "only 2 left".into(),
                detail: Some(serde_bytes::ByteBuf::from(vec![0x02])),
            })),
            ..AdminError::not_applied("refused", "shop refused take")
        });
        assert_eq!(
            error.to_json().to_string(),
            r#"{"error":{"code":"refused","message":"shop refused take","refusal":{"code":"out-of-stock","detail":2,"message":"only 2 left"},"state":"not-applied"}}"#
        );
        assert!(error.to_text().contains("only 2 left (out-of-stock)"));
    }
}
