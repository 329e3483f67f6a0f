//! The error of a verb, with its exit code and its two forms of output.

use std::process::ExitCode;

use serde_json::{Value, json};

use annulus_admin::{AdminError, Malformed};
use annulus_values::to_json;

/// The error of a verb. Each variant has an exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The node refused the request, failed, or did not answer; the error's `state` says whether the request
    /// was applied. Exit code 1.
    #[error("{0}")]
    Failed(#[from] AdminError),
    /// An obstacle on this machine, or a negative answer to a confirmation. Exit code 1.
    #[error("{0}")]
    Other(String),
    /// The command line is wrong. Nothing was done. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No node could be reached. Nothing was done. Exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The verb failed and has already shown the reason. Exit code 1.
    #[error("failed")]
    Shown,
    /// The reader of stdout has closed the pipe, as `head` does; that is not a failure and is not reported.
    /// Exit code 0.
    #[error("the reader of the answer has closed the pipe")]
    ReaderGone,
}

impl CliError {
    /// Return the exit code: 1 the request failed, 2 bad usage, 3 cannot reach the node.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) | Self::Other(_) | Self::Shown => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::ReaderGone => 0,
        })
    }

    /// Return the JSON form, `{"error": {"code", "message", "state"}}`; a module's refusal adds `"refusal"`.
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

    /// Return the text form, one or more lines for stderr.
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
        Self::Other(format!("the node's answer cannot be decoded ({error}); does it run another version?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use annulus_admin::RefusalDetail;

    #[test]
    fn a_refusal_is_shown_with_its_code_message_and_detail() {
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
