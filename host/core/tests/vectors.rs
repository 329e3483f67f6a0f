//! Recomputes every hash and every place of the vectors made by riak_core.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use annulus_core::keyspace::{RingSize, hash_key};
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    ring_sizes: Vec<u32>,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    bucket_hex: String,
    key_hex: String,
    sha1_hex: String,
    partition: BTreeMap<String, Place>,
}

#[derive(Deserialize)]
struct Place {
    id: u16,
    index: String,
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn hash_partition_and_index_match_riak_core() {
    let file: File = serde_json::from_str(include_str!("vectors/keyspace.json")).unwrap();
    assert!(file.vectors.len() >= 69, "vectors are missing");
    for vector in &file.vectors {
        let hash = hash_key(&unhex(&vector.bucket_hex), &unhex(&vector.key_hex));
        assert_eq!(hash.to_string(), vector.sha1_hex);
        assert_eq!(vector.partition.len(), file.ring_sizes.len());
        for size in &file.ring_sizes {
            let (ring, place) = (RingSize::try_from(*size).unwrap(), &vector.partition[&size.to_string()]);
            let id = ring.partition_of(&hash);
            assert_eq!((id.0, ring.index_of(id)), (place.id, place.index.clone()), "{}", vector.sha1_hex);
        }
    }
}
