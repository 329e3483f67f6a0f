//! The context of a verb: global options, output, and connections to nodes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::output::remark;
use super::{CliError, Connection, Global, Output};
use annulus_transport::client::Closer;

/// The global options, the output and the open connections of one run of the command line.
#[derive(Clone, Debug)]
pub struct Context {
    /// Options that every verb accepts.
    pub global: Global,
    /// Destination of answers, notes and errors.
    pub output: Output,
    /// One closer per open connection.
    closers: Arc<Mutex<Vec<Closer>>>,
}

impl Context {
    /// Create a context with no connection.
    pub fn new(global: Global, output: Output) -> Self {
        Self { global, output, closers: Arc::default() }
    }

    /// Connect to the addressed node: the one of `--node`, or else the one of `--data`.
    ///
    /// # Errors
    /// Returns the errors of [`Connection::open`]: no credentials, no answer, or credentials that the node
    /// refuses.
    pub async fn connect(&self) -> Result<Connection, CliError> {
        let connection =
            Connection::open(&self.global.data, self.global.node.as_deref(), &self.output).await?;
        let mut closers = self.closers.lock();
        closers.retain(|closer| !closer.is_closed());
        closers.push(connection.closer());
        Ok(connection)
    }

    /// Close every connection.
    ///
    /// Must be called before the process exits: a node counts an operator that leaves without a close as
    /// connected until the idle timeout.
    pub async fn disconnect(&self) {
        let closers = std::mem::take(&mut *self.closers.lock());
        for closer in closers {
            closer.close().await;
        }
    }

    /// Ask for confirmation before an irreversible change; `--yes` skips the question.
    ///
    /// # Errors
    /// Returns `Other` if the answer is no or cannot be read, and `Usage` if there is no terminal to ask at.
    pub fn confirm(&self, question: &str) -> Result<(), CliError> {
        if self.global.yes {
            return Ok(());
        }
        if !self.output.interactive() {
            return Err(CliError::Usage(format!("{question} Pass --yes to continue.")));
        }
        remark(&format!("{question} [y/N] "));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|error| CliError::Other(error.to_string()))?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(CliError::Other("nothing was done".to_owned())),
        }
    }
}
