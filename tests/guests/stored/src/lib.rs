//! A key/value store: items in host storage, the newest version wins, deletes are tombstones. With the setting
//! `farewell`, an ending instance writes the reason for its end under that key.
use annulus_guest::prelude::*;

#[derive(Default)]
struct Kv {
    farewell: Option<String>,
}

type Entry = Latest<Value>;

/// Both formats have the same bytes: the tests only check which one the host requests.
const FORMATS: &[u32] = if cfg!(feature = "format-two") { &[1, 2] } else { &[1] };

#[derive(Commands)]
enum Command {
    /// Store a value under a key.
    #[command(write, reply = "text")]
    Put { key: String, value: Value },
    /// Return the value of a key, or null.
    Get { key: String },
    /// Delete a key and return the value that it had, or null.
    #[command(write)]
    Delete { key: String },
    /// Return the format in which the items of a key must be written.
    Format { key: String },
    /// Return every key.
    #[command(everywhere, reply = "text")]
    Keys,
    /// Return every value.
    #[command(everywhere)]
    Values,
    /// Delete everything and return the deleted values.
    #[command(write, everywhere)]
    Clear,
}

fn set(key: &str, value: Option<Value>) -> Option<Value> {
    let before: Option<Entry> = storage::load(key);
    storage::store(key, &Latest::after(before.as_ref(), value));
    before.and_then(Latest::get)
}

impl Vnode for Kv {
    type Command = Command;

    const WRITES_FORMATS: &'static [u32] = FORMATS;
    const READS_FORMATS: &'static [u32] = FORMATS;

    fn config() -> Vec<Param> {
        vec![Param::optional("farewell", "text", "a key to write as the last words of an instance")]
    }

    fn init(&mut self, config: Config) -> Result<(), String> {
        self.farewell = config.get("farewell")?;
        Ok(())
    }

    fn handle_command(&mut self, command: Command) -> Result<Reply, Failure> {
        match command {
            Command::Put { key, value } => {
                set(&key, Some(value));
                reply("ok")
            }
            Command::Get { key } => reply(storage::load::<Entry>(key).and_then(Latest::get)),
            Command::Delete { key } => reply(set(&key, None)),
            // The key only routes the command to a partition.
            Command::Format { key: _key } => reply(host::write_format()),
            Command::Keys | Command::Values | Command::Clear => Err(Failure::UnknownCommand),
        }
    }
}

impl Coverage for Kv {
    fn handle_coverage(&mut self, command: Command, at: Cursor) -> Result<Values, Failure> {
        storage::each(at, |key, entry: Entry| match command {
            Command::Keys => key.into(),
            Command::Clear => set(key, None).into(),
            _ => entry.get().into(),
        })
    }
}

impl Merge for Kv {
    type State = Entry;
}

impl Lifecycle for Kv {
    fn terminate(&mut self, reason: &str) {
        if let Some(key) = &self.farewell {
            set(key, Some(reason.into()));
        }
    }
}

export!(Kv: Coverage + Merge + Lifecycle);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use annulus_guest::testing::{Tester, laws};

    #[test]
    fn puts_gets_and_deletes() {
        let kv = Tester::<Kv>::start();
        assert_eq!(kv.call("put", &["k1".into(), "v1".into()]).unwrap(), Value::from("ok"));
        assert_eq!(kv.call("get", &["k1".into()]).unwrap(), Value::from("v1"));
        assert_eq!(kv.call("delete", &["k1".into()]).unwrap(), Value::from("v1"));
        assert_eq!(kv.call("get", &["k1".into()]).unwrap(), Value::Null);
        assert!(matches!(kv.call("get", &[]), Err(Failure::BadArguments(m)) if m.contains("key")));
    }

    #[test]
    fn states_obey_the_laws() {
        let a = Latest::after(None, Some(1));
        let b = Latest::after(Some(&a), None);
        let c = Latest::after(Some(&b), Some(2));
        laws(&[a, b, c]);
    }

    #[test]
    fn coverage_crosses_pages_and_clear_leaves_tombstones() {
        let kv = Tester::<Kv>::start();
        for at in 0..10 {
            kv.call("put", &[format!("k{at}").into(), at.into()]).unwrap();
        }
        kv.call("delete", &["k3".into()]).unwrap();
        assert_eq!(kv.coverage("keys", &[]).unwrap().len(), 9);
        assert_eq!(kv.coverage("clear", &[]).unwrap().len(), 9);
        assert_eq!(kv.coverage("keys", &[]), Ok(vec![]));
        assert_eq!(kv.stored().iter().filter(|item| item.deleted).count(), 10);
    }

    #[test]
    fn two_replicas_that_exchange_their_items_end_equal() {
        let (one, other) = (Tester::<Kv>::start(), Tester::<Kv>::start());
        one.call("put", &["k".into(), "old".into()]).unwrap();
        assert!(other.receive_stored(one.stored()).is_empty());
        other.call("put", &["k".into(), "new".into()]).unwrap();
        one.call("delete", &["k".into()]).unwrap();
        one.call("put", &["only here".into(), 1.into()]).unwrap();
        assert!(other.receive_stored(one.stored()).is_empty());
        assert!(one.receive_stored(other.stored()).is_empty());
        assert_eq!(one.stored(), other.stored());
    }
}
