//! What a verb is given: flags, output, and the way to a node.

use std::sync::Arc;

use parking_lot::Mutex;

use super::output::remark;
use super::{CliError, Connection, Global, Output};
use annulus_transport::client::Closer;

/// What a verb is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Flags that go for every verb.
    pub global: Global,
    /// Where answers go.
    pub output: Output,
    /// One for each connection that is open.
    closers: Arc<Mutex<Vec<Closer>>>,
}

impl Context {
    /// From the command line's words.
    pub fn new(global: Global, output: Output) -> Self {
        Self { global, output, closers: Arc::default() }
    }

    /// Reaches the addressed node.
    ///
    /// # Errors
    /// `Unreachable` when there are no credentials, nobody answers or the node does not know us.
    pub async fn connect(&self) -> Result<Connection, CliError> {
        let connection =
            Connection::open(&self.global.data, self.global.node.as_deref(), &self.output).await?;
        let mut closers = self.closers.lock();
        closers.retain(|closer| !closer.is_closed());
        closers.push(connection.closer());
        Ok(connection)
    }

    /// Closes every connection. Called before the process exits: a node keeps the place of an operator
    /// that goes without a close until the idle time-out.
    pub async fn disconnect(&self) {
        let closers = std::mem::take(&mut *self.closers.lock());
        for closer in closers {
            closer.close().await;
        }
    }

    /// Asks before what cannot be taken back; `--yes` answers it.
    ///
    /// # Errors
    /// When the answer is no, or nobody is there to give one.
    pub fn confirm(&self, question: &str) -> Result<(), CliError> {
        if self.global.yes {
            return Ok(());
        }
        if !self.output.interactive() {
            return Err(CliError::Usage(format!("{question} Say --yes to do it.")));
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
