//! Tests of consecutive releases: the format that each release writes, and the releases to which a rollback can go.

use annulus_tests::guests::{component, component_with};
use annulus_tests::harness::{Cluster, Ran};

const STORED: &str = "tests/guests/stored";

#[test]
fn a_release_writes_the_format_of_the_previous_release_until_that_is_gone() {
    let cluster = Cluster::joined(2);
    let [first, second] = [
        cluster.keep("first.wasm", &component(STORED)),
        cluster.keep("second.wasm", &component_with(STORED, &["format-two"])),
    ];
    let [node, other] = [&cluster[0], &cluster[1]];
    let run = |words: &[&str]| -> Ran { node.json(words) };
    let deploy = |words: &[&str]| {
        let ran = run(&[&["deploy"], words].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()["version"].as_u64().unwrap()
    };
    let format = || other.call("stored", "format", &["k"]).unwrap();
    let [first, second] = [first.to_str().unwrap(), second.to_str().unwrap()];

    assert_eq!((deploy(&[first]), format()), (1, 1.into()));
    node.call("stored", "put", &["k", "kept"]).unwrap();
    assert_eq!(
        (deploy(&[second]), format()),
        (2, 1.into()),
        "the release still writes format 1, because the previous release reads no other"
    );
    // The rollback succeeds: every item so far has a format that the previous release reads.
    assert_eq!(run(&["rollback", "stored"]).code, 0);
    assert_eq!(format(), 1);
    assert_eq!((deploy(&[second]), format()), (4, 1.into()));
    assert_eq!((deploy(&[second, "--set", "farewell=bye"]), format()), (5, 2.into()));

    let refused = run(&["rollback", "stored", "--to", "1"]);
    assert_eq!(refused.json()["error"]["code"], "incompatible", "{refused:?}");
    assert_eq!(refused.json()["error"]["state"], "not-applied", "{refused:?}");
    assert_eq!(run(&["modules"]).json()[0]["version"], 5);
    let refused = run(&["deploy", first]);
    assert_eq!(refused.json()["error"]["code"], "incompatible", "{refused:?}");
    assert_eq!((format(), run(&["modules"]).json()[0]["version"].clone()), (2.into(), 5.into()));
    // The previous release reads format 2 as well.
    assert_eq!(run(&["rollback", "stored"]).code, 0);
    assert_eq!(format(), 2);
    assert_eq!(other.call("stored", "get", &["k"]).unwrap(), "kept");
}
