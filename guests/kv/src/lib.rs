//! The tutorial's key/value store. The items are in host storage and the newest version of a key wins. A delete leaves
//! a tombstone, so that an item from a handoff never overwrites a newer write.
use annulus_guest::prelude::*;

#[derive(Default)]
struct Kv;

/// The state of one key.
type Entry = Latest<Value>;

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
    /// Return the number of keys, one number for each page of a partition.
    #[cfg(feature = "v2")]
    #[command(everywhere, reply = "uint")]
    Count,
}

/// Set a value, or a tombstone, for a key and return the previous value.
fn set(key: &str, value: Option<Value>) -> Option<Value> {
    let before: Option<Entry> = storage::load(key);
    storage::store(key, &Latest::after(before.as_ref(), value));
    before.and_then(Latest::get)
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
                set(&key, Some(value));
                reply("ok")
            }
            Command::Get { key } => reply(storage::load::<Entry>(key).and_then(Latest::get)),
            Command::Delete { key } => reply(set(&key, None)),
            // All other commands go to every partition.
            _ => Err(Failure::UnknownCommand),
        }
    }
}

impl Coverage for Kv {
    fn handle_coverage(&mut self, command: Command, at: Cursor) -> Result<Values, Failure> {
        match command {
            Command::Keys => storage::each(at, |key, _: Entry| key.into()),
            Command::Values => storage::each(at, |_, entry: Entry| entry.get().into()),
            Command::Clear => storage::each(at, |key, entry: Entry| {
                storage::store(key, &Latest::after(Some(&entry), None));
                key.into()
            }),
            // One number for each page: no call lasts longer because a partition has more keys.
            #[cfg(feature = "v2")]
            Command::Count => {
                let mut count = 0;
                let page = storage::each(at, |_, _: Entry| {
                    count += 1;
                    Emit::nothing()
                })?;
                Ok(Values { next: page.next, ..Values::of([count]) })
            }
            // All other commands go to one key.
            _ => Err(Failure::UnknownCommand),
        }
    }
}

impl Merge for Kv {
    type State = Entry;
}

export!(Kv: Coverage + Merge);

#[cfg(test)]
mod tests;
