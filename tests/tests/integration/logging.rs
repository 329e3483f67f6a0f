//! A node whose log cannot be written works without restriction.

use std::fs::File;
use std::os::fd::OwnedFd;

use annulus_tests::harness::{Cluster, until};

/// Check that a node with this stderr joins, serves, logs a trap of a guest, and stops.
fn serves_with(stderr: OwnedFd) {
    // `-vv` logs more than a pipe buffers.
    let mut cluster = Cluster::apart_with(2, &["-vv"]);
    cluster[1].stop();
    cluster[1].stderr = Some(stderr);
    cluster[1].start();
    cluster[1].join(&cluster[0]);
    cluster.deploy("tests/guests/hostile");
    let members = cluster[0].json(&["members"]).json();
    let row = members.as_array().unwrap().iter().find(|row| row["node"] == cluster[1].name.as_str()).unwrap();
    assert_eq!((row["status"].as_str(), row["alive"].as_bool()), (Some("member"), Some(true)), "{row}");
    for asked in 0..20 {
        let key = format!("k{asked}");
        // The guest traps; the node logs a warning with the guest's last output.
        let error = cluster[1].call("hostile", "put-and-trap", &[&key, "v"]).unwrap_err();
        assert_eq!(error["code"], "trapped", "{error}");
        until("the vnode is back", || cluster[1].call("hostile", "get", &[&key]).ok());
    }
    assert!(cluster[1].is_running());
    assert_eq!(cluster[1].stop(), Some(0));
}

#[test]
fn a_node_with_its_log_on_a_full_disk_joins_and_serves() {
    serves_with(File::options().write(true).open("/dev/full").unwrap().into());
}

#[test]
fn a_node_with_its_log_to_a_closed_pipe_joins_and_serves() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    serves_with(writer.into());
}

#[test]
fn a_node_with_its_log_to_a_full_pipe_joins_and_serves() {
    let (reader, writer) = std::io::pipe().unwrap();
    serves_with(writer.into());
    drop(reader);
}
