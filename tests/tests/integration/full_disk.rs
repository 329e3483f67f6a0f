//! A node whose disk fills up refuses writes, serves reads, and goes on by itself when there is space again.

use std::fs::{self, File};

use annulus_tests::book::Book;
use annulus_tests::client::Applied;
use annulus_tests::guests::component;
use annulus_tests::harness::{Node, until};
use annulus_tests::image::Image;

use super::durable::losses;

/// Size of the file system, and of the file that is deleted to free space.
const DISK_MIB: u64 = 150;
const BALLAST_MIB: u64 = 40;

#[test]
fn a_full_disk_refuses_writes_and_serves_reads_until_space_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let image = match Image::create(dir.path().join("image"), dir.path().join("disk"), DISK_MIB) {
        Ok(image) => image,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    let ballast = image.path().join("ballast");
    fs::write(&ballast, vec![1; (BALLAST_MIB << 20) as usize]).unwrap();
    File::open(&ballast).unwrap().sync_all().unwrap();
    let arguments = ["--ring-size", "8", "--disk-reserve", "24MiB"];
    let mut node = Node::new("rc_example1@127.0.0.1", dir.path(), &arguments);
    node.data = image.path().join("data");
    node.start();
    let file = dir.path().join("kv.wasm");
    fs::write(&file, component("guests/kv")).unwrap();
    assert_eq!(node.json(&["deploy".as_ref(), file.as_os_str()]).code, 0);

    let mut book = Book::new("kv", 100_000);
    let (mut next, batch) = (0, 16);
    let refused = loop {
        let failed = book.try_put(&node, next..next + batch);
        next += batch;
        if !failed.is_empty() {
            break failed;
        }
        assert!(next < 5_000, "a disk of {DISK_MIB} MiB takes {next} items of 100 kB");
    };
    for failure in &refused {
        assert_eq!((failure.code.as_str(), failure.applied), ("storage-full", Applied::No), "{failure:?}");
    }
    assert!(book.len() > 100, "full with {} items", book.len());
    println!("full with {} items: {}", book.len(), refused[0].message);
    // Reads, deletes and the control plane go on.
    let seen = book.read(&node, 0..next);
    assert!(seen.is_whole(), "{seen:?}");
    book.delete(&node, 0..1);
    assert_eq!(node.json(&["token"]).code, 0);
    let alerts = node.json(&["status"]).json()["alerts"].to_string();
    // So does a process that starts on the full disk.
    node.kill();
    node.start();
    let seen = book.read(&node, 0..next);
    assert!(seen.is_whole(), "{seen:?}");

    fs::remove_file(&ballast).unwrap();
    until("writes are accepted again", || book.try_put(&node, next..next + 1).is_empty().then_some(()));
    book.put(&node, next..next + batch);
    let process = node.process();
    node.kill();
    node.start();
    assert_ne!(process, node.process());
    let seen = book.read(&node, 0..next + batch);
    assert!(seen.is_whole(), "{seen:?}");
    assert_eq!(losses(&node), [""; 0]);
    assert!(alerts.contains("disk"), "a full disk is an alert: {alerts}");
    // The image is unmounted after the process that uses it has ended.
    node.kill();
}
