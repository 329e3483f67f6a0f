//! Acknowledged items of one module, to be compared with the items that a cluster serves later.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ciborium::Value;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

use crate::client::{Failure, Operator, call_all};
use crate::harness::Node;

/// Deadline of a request.
const LIMIT: Duration = Duration::from_secs(30);

/// The acknowledged items of a module with the commands of `guests/kv`.
pub struct Book {
    module: &'static str,
    /// Bytes of a value.
    bytes: usize,
    /// The number of the last acknowledged write, by key; the value follows from it.
    items: BTreeMap<u32, u64>,
    writes: u64,
    runtime: Runtime,
}

/// The result of a read of all keys.
#[derive(Debug, Default)]
pub struct Seen {
    /// Number of keys with the expected value, or without a value if it was deleted.
    pub right: usize,
    /// Keys without their value.
    pub missing: Vec<u32>,
    /// Keys with another value.
    pub wrong: Vec<u32>,
    /// Requests that failed.
    pub failed: Vec<Failure>,
}

impl Seen {
    /// Return true if no key has lost its value or has another one, and every request was answered.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty() && self.failed.is_empty()
    }
}

impl Book {
    /// Create a book without items. Each value will have this many bytes, which no compression makes smaller.
    ///
    /// # Panics
    /// If the runtime of the requests cannot be created.
    pub fn new(module: &'static str, bytes: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no threads for calls: {error}"));
        Self { module, bytes, items: BTreeMap::new(), writes: 0, runtime }
    }

    /// Return the number of keys with a value.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Return true if no key has a value.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Put these keys through a node, each with a new value.
    ///
    /// # Panics
    /// If a put fails.
    pub fn put(&mut self, node: &Node, keys: Range<u32>) {
        let (first, last) = (keys.start, keys.end);
        let failed = self.try_put(node, keys);
        assert!(failed.is_empty(), "puts of {first} to {last} failed: {failed:?}");
    }

    /// Put these keys through a node, and note the acknowledged ones. Return the failures.
    pub fn try_put(&mut self, node: &Node, keys: Range<u32>) -> Vec<Failure> {
        let writes: Vec<(u32, u64)> = keys.zip(self.writes + 1..).collect();
        self.writes += writes.len() as u64;
        let bytes = self.bytes;
        let requests = writes.iter().map(|&(key, write)| {
            let args = vec![key_of(key), ("value".into(), Value::Bytes(content(write, bytes)))];
            ((key, write), "put", args)
        });
        let mut failed = Vec::new();
        for ((key, write), answer) in self.ask(node, requests) {
            match answer {
                Ok(_) => drop(self.items.insert(key, write)),
                Err(failure) => failed.push(failure),
            }
        }
        failed
    }

    /// Delete these keys through a node.
    ///
    /// # Panics
    /// If a delete fails.
    pub fn delete(&mut self, node: &Node, keys: Range<u32>) {
        let requests = keys.map(|key| (key, "delete", vec![key_of(key)]));
        for (key, answer) in self.ask(node, requests) {
            assert!(answer.is_ok(), "delete of {key}: {answer:?}");
            self.items.remove(&key);
        }
    }

    /// Read these keys through a node, and compare them with the acknowledged writes.
    pub fn read(&self, node: &Node, keys: Range<u32>) -> Seen {
        let mut seen = Seen::default();
        for (key, answer) in self.ask(node, keys.map(|key| (key, "get", vec![key_of(key)]))) {
            let expected = self.items.get(&key).map(|write| content(*write, self.bytes));
            match answer {
                Err(failure) => seen.failed.push(failure),
                Ok(Value::Null) if expected.is_none() => seen.right += 1,
                Ok(Value::Null) => seen.missing.push(key),
                Ok(Value::Bytes(bytes)) if Some(&bytes) == expected.as_ref() => seen.right += 1,
                Ok(_) => seen.wrong.push(key),
            }
        }
        seen
    }

    /// Send these requests, some at a time, and return their answers.
    fn ask<K: Send + 'static>(
        &self,
        node: &Node,
        requests: impl Iterator<Item = (K, &'static str, Vec<(Value, Value)>)>,
    ) -> Vec<(K, Result<Value, Failure>)> {
        self.runtime.block_on(async {
            let operator = Operator::connect(&node.data).await;
            let operator = Arc::new(operator.unwrap_or_else(|failure| panic!("{}: {failure:?}", node.name)));
            call_all(&operator, self.module, requests, LIMIT).await
        })
    }
}

fn key_of(key: u32) -> (Value, Value) {
    ("key".into(), name_of(key).into())
}

/// Return the name of a key.
pub fn name_of(key: u32) -> String {
    format!("item-{key:06}")
}

fn content(write: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(write).fill_bytes(&mut content);
    content
}
