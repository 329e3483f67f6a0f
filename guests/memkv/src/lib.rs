//! The key/value store of `guests/kv`, with its items in guest memory: they end with the node's process. The newest
//! version of a key wins. A delete leaves a tombstone, so that an item from a handoff never overwrites a newer write.
use annulus_guest::prelude::*;

#[derive(Default)]
struct Kv {
    data: Table<Latest<Value>>,
}

#[derive(Commands)]
enum Command {
    /// Store a value under a key.
    #[command(write, reply = "text")]
    Put {
        key: String,
        /// Any value that CBOR can express.
        value: Value,
    },
    /// Return the value of a key, or null.
    Get { key: String },
    /// Delete a key and return the value that it had, or null.
    #[command(write, frees)]
    Delete { key: String },
    /// Return every key.
    #[command(everywhere, reply = "text")]
    Keys,
    /// Return every value.
    #[command(everywhere)]
    Values,
    /// Delete everything and return the keys that were deleted.
    #[command(write, frees, everywhere, reply = "text")]
    Clear,
    /// Return the number of keys, one number for each partition.
    #[cfg(feature = "v2")]
    #[command(everywhere, reply = "uint")]
    Count,
}

impl Kv {
    /// Set a value, or a tombstone, for a key and return the previous value.
    fn set(&mut self, key: &str, value: Option<Value>) -> Option<Value> {
        let next = Latest::after(self.data.get(key), value);
        self.data.set(key, next).and_then(Latest::get)
    }
}

impl Vnode for Kv {
    type Command = Command;

    #[cfg(feature = "v2")]
    fn version() -> String {
        "0.2.0".to_owned()
    }

    fn handle_command(&mut self, command: Command) -> Result<Reply, Failure> {
        match command {
            Command::Put { key, value } => {
                self.set(&key, Some(value));
                reply("ok")
            }
            Command::Get { key } => reply(self.data.get(&key).and_then(Latest::value)),
            Command::Delete { key } => reply(self.set(&key, None)),
            // All other commands go to every partition.
            _ => Err(Failure::UnknownCommand),
        }
    }
}

impl Coverage for Kv {
    fn handle_coverage(&mut self, command: Command, at: Cursor) -> Result<Values, Failure> {
        match command {
            Command::Keys => self.data.each(at, |key, _| key.into()),
            Command::Values => self.data.each(at, |_, entry| entry.value().into()),
            Command::Clear => {
                self.data.change_each(at, |key, entry| (Latest::after(Some(entry), None), key.into()))
            }
            #[cfg(feature = "v2")]
            Command::Count => Ok(Values::of([self.data.len()])),
            // All other commands go to one key.
            _ => Err(Failure::UnknownCommand),
        }
    }
}

impl Handoff for Kv {
    fn items(&mut self) -> &mut dyn Items {
        &mut self.data
    }
}

export!(Kv: Coverage + Handoff);

#[cfg(test)]
mod tests;
