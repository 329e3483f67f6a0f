//! A node whose items are damaged or gone: it starts, keeps its identity and its vote, says what happened, and serves.
//!
//! An item is never missing or changed without an alert: the node either serves everything, or it has set the items
//! aside, or it refuses to read them until its next start, which sets them aside.

mod journal;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annulus_tests::book::{Book, Seen, name_of};
use annulus_tests::guests::component;
use annulus_tests::harness::{Cluster, Node, until};

use super::control::{copy_dir, files_under, three_voters};
use super::durable::losses;

/// The outcome of one start of a damaged node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Every item is there: the damaged byte is of no use to the store.
    Whole,
    /// The start noticed, and set the items aside.
    SetAside,
    /// A read noticed, and the next start set the items aside.
    Refused,
}

/// A node with items, whose directory is copied for each damage.
struct Original {
    dir: tempfile::TempDir,
    node: Node,
    book: Book,
    keys: Range<u32>,
}

impl Original {
    /// Create a node, put items and kill it.
    fn with_items(bytes: usize, keys: Range<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::new("rc_example1@127.0.0.1", dir.path(), &["--ring-size", "8"]);
        node.start();
        let file = dir.path().join("kv.wasm");
        fs::write(&file, component("guests/kv")).unwrap();
        assert_eq!(node.json(&["deploy".as_ref(), file.as_os_str()]).code, 0);
        let mut book = Book::new("kv", bytes);
        book.put(&node, keys.clone());
        Self { dir, node, book, keys }
    }

    fn items(&self) -> PathBuf {
        self.node.data.join("items")
    }

    /// Return the files of the items database with these endings or names.
    fn files(&self, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let mut files = Vec::new();
        files_under(&self.items(), &mut files);
        files.retain(|file| wanted(file));
        files.sort();
        files
    }

    /// Start a copy of the node on which `damage` was done, and check all that is promised.
    fn damaged(&self, what: &str, damage: impl FnOnce(&Path)) -> Outcome {
        let data = self.dir.path().join("damaged");
        drop(fs::remove_dir_all(&data));
        copy_dir(&self.node.data, &data);
        damage(&data);
        let mut node = Node::new(&self.node.name, self.dir.path(), &["--ring-size", "8"]);
        node.data = data;
        node.start();
        // The vote: a lone node commits only if its own Raft state is whole.
        assert_eq!(node.json(&["token"]).code, 0, "{what}: {}", node.log_tail());
        let seen = self.book.read(&node, self.keys.clone());
        let outcome = match losses(&node).is_empty() {
            true if seen.is_whole() => Outcome::Whole,
            true => {
                // A read that cannot be answered is an error. It is never an answer without the value.
                assert!(seen.missing.is_empty() && seen.wrong.is_empty(), "{what}: {seen:?}");
                assert!(
                    seen.failed.iter().all(|failure| failure.code == "storage-damaged"),
                    "{what}: {seen:?}"
                );
                node.kill();
                node.start();
                Outcome::Refused
            }
            false => Outcome::SetAside,
        };
        if outcome != Outcome::Whole {
            self.check_set_aside(what, &node);
        }
        outcome
    }

    fn check_set_aside(&self, what: &str, node: &Node) {
        let alerts = losses(node);
        assert!(
            alerts.iter().any(|alert| alert.contains("kv") && alert.contains("items-set-aside")),
            "{what}: {alerts:?}"
        );
        let kept = fs::read_dir(&node.data).unwrap().flatten();
        let aside = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("items-set-aside"));
        assert_eq!(aside.count(), 1, "{what}");
        let Seen { right, wrong, failed, .. } = self.book.read(node, self.keys.clone());
        assert!(right == 0 && wrong.is_empty() && failed.is_empty(), "{what}: the new store is empty");
        node.call("kv", "put", &[&name_of(self.keys.start), "again"]).unwrap();
        assert_eq!(node.call("kv", "get", &[&name_of(self.keys.start)]).unwrap(), "again", "{what}");
    }
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x11;
    fs::write(file, bytes).unwrap();
}

fn position(bytes: &[u8], sought: &[u8]) -> Option<usize> {
    bytes.windows(sought.len()).position(|window| window == sought)
}

/// fjall itself takes damage of a length or a tag for the end of the journal, and drops what follows.
#[test]
fn a_flipped_byte_in_any_field_of_the_journal_is_noticed() {
    let keys = 0..60;
    let mut original = Original::with_items(200, keys.clone());
    original.node.kill();
    let name = name_of(keys.end / 2);
    let journals = original.files(|file| file.extension().is_some_and(|ending| ending == "jnl"));
    let holds = |file: &&PathBuf| position(&fs::read(file).unwrap(), name.as_bytes()).is_some();
    let journal = journals.iter().find(holds).expect("the item is in the journal");
    let bytes = fs::read(journal).unwrap();
    let batches = journal::batches(&bytes);
    let has_item = |fields: &&Vec<journal::Field>| {
        fields
            .iter()
            .any(|(field, at)| *field == "key" && position(&bytes[at.clone()], name.as_bytes()).is_some())
    };
    let batch = batches.iter().find(has_item).expect("a batch with the item");
    let inside = journal.strip_prefix(&original.node.data).unwrap();
    let (mut done, mut outcomes) = (BTreeSet::new(), BTreeSet::new());
    for (field, at) in batch {
        // Later entries of the batch have the same fields.
        if !done.insert(*field) {
            continue;
        }
        let places = BTreeSet::from([at.start, at.end - 1]);
        for place in places {
            let what = format!("{field}, byte {} of {}", place - at.start, at.len());
            let outcome = original.damaged(&what, |data| flip(&data.join(inside), place));
            println!("{what}: {outcome:?}");
            outcomes.insert(outcome);
        }
    }
    assert_eq!(done.len(), 15, "{done:?}");
    assert!(outcomes.contains(&Outcome::SetAside), "{outcomes:?}");
}

/// Values of 40 kB are apart from their keys, in files of their own; keys and small values are in tables.
#[test]
fn a_flipped_byte_in_a_table_is_noticed_by_the_start_or_by_the_read() {
    let mut original = Original::with_items(40_000, 0..400);
    original.book = Book::new("kv", 2_000);
    original.book.put(&original.node, 0..8_000);
    original.keys = 0..8_000;
    let tables = |original: &Original| {
        original.files(|file| file.components().any(|part| part.as_os_str() == "tables"))
    };
    until("a table is written", || (!tables(&original).is_empty()).then_some(()));
    original.node.kill();
    let tables = tables(&original);
    let table = tables.iter().max_by_key(|table| fs::metadata(table).unwrap().len()).unwrap();
    let inside = table.strip_prefix(&original.node.data).unwrap();
    let length = usize::try_from(fs::metadata(table).unwrap().len()).unwrap();
    let mut outcomes = BTreeSet::new();
    // The first data block, the middle, and the last block, which is metadata.
    for at in [200, length / 2, length - 64] {
        let outcome =
            original.damaged(&format!("byte {at} of {length}"), |data| flip(&data.join(inside), at));
        println!("byte {at} of {length}: {outcome:?}");
        outcomes.insert(outcome);
    }
    assert!(outcomes.len() > usize::from(outcomes.contains(&Outcome::Whole)), "no damage was noticed");
}

/// A journal that is gone opens as an empty database without an error.
#[test]
fn items_that_are_gone_or_truncated_are_reported() {
    let mut original = Original::with_items(200, 0..60);
    original.node.kill();
    let journals = original.files(|file| file.extension().is_some_and(|ending| ending == "jnl"));
    let inside: Vec<&Path> =
        journals.iter().map(|file| file.strip_prefix(&original.node.data).unwrap()).collect();
    let gone = original.damaged("no items/", |data| fs::remove_dir_all(data.join("items")).unwrap());
    assert_eq!(gone, Outcome::SetAside);
    let emptied = original.damaged("no journal", |data| {
        inside.iter().for_each(|journal| fs::remove_file(data.join(journal)).unwrap());
    });
    assert_eq!(emptied, Outcome::SetAside);
}

/// Two of three voters remain while the third sets its items aside: the damage costs no vote.
#[test]
fn a_voter_without_its_items_still_votes_and_the_others_serve() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    let mut book = Book::new("kv", 200);
    book.put(&cluster[0], 0..300);
    three_voters(&cluster[0]);
    cluster[1].kill();
    fs::remove_dir_all(cluster[1].data.join("items")).unwrap();
    cluster[1].start();
    until("the alert of the node", || (!losses(&cluster[1]).is_empty()).then_some(()));
    let seen = book.read(&cluster[0], 0..300);
    assert!(!seen.missing.is_empty() && seen.right > 150, "one of three owners has lost its items: {seen:?}");
    assert!(seen.wrong.is_empty() && seen.failed.is_empty(), "{seen:?}");
    // Its vote counts: with one of the others away, it is needed for a majority.
    cluster[2].kill();
    until("a change is committed", || (cluster[0].json(&["token"]).code == 0).then_some(()));
    cluster[2].start();
    until("every partition serves", || cluster[0].everywhere("kv", "keys").ok());
    let after = book.read(&cluster[0], 0..300);
    assert_eq!(after.missing.len(), seen.missing.len(), "the others have kept theirs");
    // It shows the loss of the other node, and none of its own.
    let own = losses(&cluster[2]).into_iter().filter(|alert| !alert.contains(&cluster[1].name));
    assert_eq!(own.collect::<Vec<_>>(), [""; 0]);
}
