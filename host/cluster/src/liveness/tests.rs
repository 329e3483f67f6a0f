//! Tests of the driver, over a network within the test.
#![allow(clippy::unwrap_used)]

use annulus_core::ids::{ClusterId, Digest};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{Command, Machine, Member, MemberStatus};
use annulus_core::version::{LEVEL, Speaks};
use tokio::time::timeout;

use super::*;
use crate::view::Views;
use annulus_transport::CallError;
use futures_util::future::BoxFuture;

/// Peers that do not reply to datagrams, connected or not.
struct Old {
    connected: Mutex<bool>,
    sent: Mutex<usize>,
}

impl ControlNetwork for Old {
    fn call(&self, _: PeerAddr, _: u8, _: Bytes, _: Instant) -> BoxFuture<'static, Result<Bytes, CallError>> {
        Box::pin(async { Err(CallError::NoAnswer) })
    }

    fn speaks(&self, _: NodeUid) -> Option<Speaks> {
        Some(Speaks::FIRST)
    }

    fn send_datagram(&self, _: &PeerAddr, _: Bytes) {
        *self.sent.lock() += 1;
    }

    fn is_up(&self, _: NodeUid) -> bool {
        *self.connected.lock()
    }
}

fn member(number: u8) -> Member {
    Member {
        id: NodeId(0),
        uid: NodeUid([number; 16]),
        name: format!("n{number}@127.0.0.1"),
        listen: format!("127.0.0.1:{number}"),
        http: String::new(),
        zone: None,
        weight: 1,
        status: MemberStatus::Member,
        staged: false,
        banned: false,
        key: Some(Digest([number; 32])),
    }
}

#[tokio::test]
async fn a_member_of_the_first_build_is_judged_by_its_connection_and_sent_no_datagrams() {
    let token = Digest([1; 32]);
    let mut machine = Machine::default();
    let found = Command::Found {
        cluster: ClusterId([1; 16]),
        ring_size: RingSize::default(),
        width: 3,
        founder: member(1),
        authority: String::new(),
        authority_key: String::new(),
        level: LEVEL,
    };
    let admit = Command::Admit { member: member(2), token, now_ms: 1 };
    for (at, command) in
        [found, Command::IssueToken { token, now_ms: 0, expires_ms: 9, uses: None }, admit].iter().enumerate()
    {
        machine.apply(at as u64 + 1, command);
    }
    let views = Arc::new(Views::new(machine.state.unwrap(), NodeId(0)));
    let book = Arc::new(AddressBook::new(views.clone()));
    let network = Arc::new(Old { connected: Mutex::new(false), sent: Mutex::default() });
    let (liveness, run) = Liveness::new(NodeId(0), NodeUid([1; 16]), annulus_core::version::Speaks::THIS);
    tokio::spawn(run.run(views.subscribe(), book, network.clone()));

    let other = NodeId(3);
    let mut table = liveness.watch();
    let becomes = async |table: &mut watch::Receiver<Arc<LivenessTable>>, up| {
        let stands = table.wait_for(|table| table.nodes.get(&other).is_some_and(|one| one.up == up));
        timeout(Duration::from_secs(20), stands).await.unwrap().unwrap();
    };
    becomes(&mut table, false).await;
    assert!(!liveness.is_up(other) && liveness.is_up(NodeId(0)));
    *network.connected.lock() = true;
    becomes(&mut table, true).await;
    *network.connected.lock() = false;
    becomes(&mut table, false).await;
    assert_eq!((liveness.table().changes, *network.sent.lock()), (2, 0));
}
