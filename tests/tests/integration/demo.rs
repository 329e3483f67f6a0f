//! The whole demo: it ends with success, reports its figures, and leaves no process behind.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use annulus_tests::guests::root;
use annulus_tests::harness::{annulus, command};

/// Port offset of the demo. It is not that of the tutorial, which a demo started by hand may use, but the first
/// of this series with three free ports when the test starts.
static OFFSET: LazyLock<u16> =
    LazyLock::new(|| (1500..20_000).step_by(17).find(|offset| are_free(*offset)).expect("three free ports"));

fn are_free(offset: u16) -> bool {
    [8199, 8299, 8399].iter().all(|port| UdpSocket::bind(("127.0.0.1", port + offset)).is_ok())
}

/// Return true if the ports of all three nodes are free.
fn ports_are_free() -> bool {
    are_free(*OFFSET)
}

/// Return the demo's arguments. The directory is kept between runs, so that guests are compiled only once.
fn words(dir: &std::path::Path) -> Vec<String> {
    let words =
        ["demo", "--port-offset", &OFFSET.to_string(), "--dir", dir.to_str().unwrap()].map(str::to_owned);
    words.into()
}

#[test]
fn the_demo_succeeds_and_its_nodes_end_with_it() {
    let dir = root().join("target/demo-test");
    let mut tour = words(&dir);
    tour.extend(["--exit", "--format", "json"].map(str::to_owned));
    let summary = annulus(&tour).json();
    assert_eq!(summary["keys_before_leave"], 5002, "{summary}");
    assert_eq!(summary["keys_after_leave"], 5002, "{summary}");
    assert_eq!(summary["keys_after_join"], 5002, "{summary}");
    assert_eq!((&summary["swap_failed"], &summary["swap_wrong"]), (&0.into(), &0.into()), "{summary}");
    assert!(summary["swap_requests"].as_u64().unwrap() > 100, "{summary}");
    assert!(ports_are_free(), "the nodes end with the demo");

    let mut demo = command().args(words(&dir)).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("Two more nodes join"))).unwrap().unwrap();
    assert!(!ports_are_free(), "the demo's nodes run");
    let taken = annulus(&words(&dir));
    assert_eq!(taken.code, 1);
    assert!(taken.stderr.contains("is taken") && taken.stderr.contains("--port-offset"), "{taken:?}");
    demo.kill().unwrap();
    demo.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(15);
    while !ports_are_free() {
        assert!(Instant::now() < deadline, "the nodes outlive their demo");
        std::thread::sleep(Duration::from_millis(20));
    }
}
