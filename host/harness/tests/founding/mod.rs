//! The log entry that founds a cluster.

use annulus_core::ids::{ClusterId, NodeId, NodeUid};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{Command, Member, MemberStatus};

/// Id of the founded cluster.
pub const CLUSTER: ClusterId = ClusterId([2; 16]);

/// Return the command that founds a single-node cluster, with a ring of 8 partitions.
pub fn found(uid: NodeUid, authority: String) -> Command {
    let founder = Member {
        id: NodeId(0),
        uid,
        name: "a@h".into(),
        listen: "127.0.0.1:1".into(),
        http: String::new(),
        zone: None,
        weight: 1,
        status: MemberStatus::Member,
        staged: false,
        banned: false,
        key: None,
    };
    Command::Found {
        cluster: CLUSTER,
        ring_size: RingSize::try_from(8).expect("a ring size"),
        width: 3,
        founder,
        authority,
        authority_key: "key".into(),
        level: annulus_core::version::LEVEL,
    }
}
