//! The first thing said on every connection, both ways (R20): protocol versions, cluster, lineage,
//! node uid, boot id.
//!
//! The dialler opens a stream, says its hello and ends its half (a node opens its lanes at once);
//! the other side checks it, accepts the lanes, and answers with its own hello or closes the
//! connection with the reason. Nothing else is read before.
//! What a hello claims must agree with the certificate; that is checked by who reads it.

use annulus_core::ids::{BootId, ClusterId, NodeUid};
use annulus_core::state::Lineage;
use bytes::{Buf, BufMut};
use quinn::{RecvStream, SendStream};

use super::close::Close;

/// Oldest and newest version of what follows a hello that this build speaks.
pub(super) const VERSIONS: (u16, u16) = (1, 1);

const MAGIC: &[u8; 8] = b"annulus\n";
const BYTES: usize = 8 + 4 + 1 + 16 + 16 + 16 + 16;
/// A later version may say more after what we know; it is skipped.
const MAX_BYTES: usize = 4096;

/// As what a peer wants to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A member of the cluster.
    Node,
    /// An operator.
    Admin,
    /// No certificate: may ask to join.
    Joiner,
}

/// Who somebody says they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub versions: (u16, u16),
    pub role: Role,
    /// Zero from an operator or a joiner.
    pub cluster: ClusterId,
    pub lineage: Lineage,
    /// Zero from an operator or a joiner.
    pub uid: NodeUid,
    pub boot: BootId,
}

impl Hello {
    /// Of a peer that is no node.
    pub(super) fn anonymous(role: Role) -> Self {
        Self {
            versions: VERSIONS,
            role,
            cluster: ClusterId([0; 16]),
            lineage: Lineage::default(),
            uid: NodeUid([0; 16]),
            boot: BootId([0; 16]),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.put_slice(MAGIC);
        out.put_u16(self.versions.0);
        out.put_u16(self.versions.1);
        out.put_u8(match self.role {
            Role::Node => 0,
            Role::Admin => 1,
            Role::Joiner => 2,
        });
        out.put_slice(&self.cluster.0);
        out.put_u64(self.lineage.number);
        out.put_u64(self.lineage.id);
        out.put_slice(&self.uid.0);
        out.put_slice(&self.boot.0);
        out
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, BadHello> {
        if bytes.len() < BYTES || !bytes.starts_with(MAGIC) {
            return Err(BadHello);
        }
        bytes.advance(MAGIC.len());
        let versions = (bytes.get_u16(), bytes.get_u16());
        let role = match bytes.get_u8() {
            0 => Role::Node,
            1 => Role::Admin,
            2 => Role::Joiner,
            _ => return Err(BadHello),
        };
        let mut id = || {
            let mut id = [0; 16];
            bytes.copy_to_slice(&mut id);
            id
        };
        let cluster = ClusterId(id());
        let mut lineage = &id()[..];
        let lineage = Lineage { number: lineage.get_u64(), id: lineage.get_u64() };
        Ok(Self { versions, role, cluster, lineage, uid: NodeUid(id()), boot: BootId(id()) })
    }

    /// Can the two talk, as far as versions go?
    pub(super) fn check_version(&self) -> Result<(), (Close, String)> {
        if self.versions.0 > VERSIONS.1 || self.versions.1 < VERSIONS.0 {
            let reason = format!(
                "protocol versions {} to {} meet {} to {}",
                self.versions.0, self.versions.1, VERSIONS.0, VERSIONS.1
            );
            return Err((Close::Version, reason));
        }
        Ok(())
    }

    /// Is it a node of this cluster?
    pub(super) fn check_cluster(&self, cluster: ClusterId) -> Result<(), (Close, String)> {
        if self.cluster != cluster {
            return Err((Close::Cluster, format!("cluster {} meets cluster {cluster}", self.cluster)));
        }
        Ok(())
    }
}

/// Not a hello at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was said first is no hello")]
pub(super) struct BadHello;

/// Says a hello and ends this half of the stream.
pub(super) async fn say(mut send: SendStream, hello: &Hello) -> Result<(), quinn::WriteError> {
    send.write_all(&hello.encode()).await?;
    // Fails only if it was finished before.
    let _ = send.finish();
    Ok(())
}

/// Reads the peer's hello to the end of its half. The caller sets the deadline.
pub(super) async fn hear(recv: &mut RecvStream) -> Result<Hello, HearError> {
    let bytes = recv.read_to_end(MAX_BYTES).await?;
    Ok(Hello::decode(&bytes)?)
}

/// Why there is no hello from the peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HearError {
    #[error(transparent)]
    Bad(#[from] BadHello),
    #[error(transparent)]
    Read(#[from] quinn::ReadToEndError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> impl Strategy<Value = Hello> {
        let role = prop_oneof![Just(Role::Node), Just(Role::Admin), Just(Role::Joiner)];
        let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
        (any::<(u16, u16)>(), role, ids, any::<(u64, u64)>()).prop_map(
            |(versions, role, (cluster, uid, boot), (number, id))| Hello {
                versions,
                role,
                cluster: ClusterId(cluster),
                lineage: Lineage { number, id },
                uid: NodeUid(uid),
                boot: BootId(boot),
            },
        )
    }

    proptest! {
        #[test]
        fn a_hello_survives_the_wire_and_what_a_later_version_adds(
            hello in hello(), more in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let bytes = [hello.encode(), more].concat();
            prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
        }

        #[test]
        fn a_cut_hello_is_refused(hello in hello(), cut in 0..BYTES) {
            prop_assert_eq!(Hello::decode(&hello.encode()[..cut]), Err(BadHello));
        }

        #[test]
        fn junk_is_no_hello(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assume!(!bytes.starts_with(MAGIC));
            prop_assert_eq!(Hello::decode(&bytes), Err(BadHello));
        }
    }

    #[test]
    fn versions_that_do_not_overlap_are_refused_and_others_are_not() {
        let with = |versions| Hello { versions, ..Hello::anonymous(Role::Node) }.check_version().is_ok();
        assert!(with(VERSIONS));
        assert!(with((0, VERSIONS.1 + 5)));
        assert!(!with((VERSIONS.1 + 1, VERSIONS.1 + 5)));
        assert!(!with((0, VERSIONS.0 - 1)));
    }
}
