//! The first message on every connection, in both directions (R20): protocol versions, cluster, lineage, node
//! uid, boot id, and supported levels of the cluster's state.
//!
//! The dialler opens a stream, sends its hello and ends its half; a node opens its lanes at once. The other
//! side checks the hello, accepts the lanes, and responds with its own hello, or closes the connection with a
//! reason. Nothing else is read before that. The reader of a hello also checks that it agrees with the
//! certificate.

use annulus_core::ids::{BootId, ClusterId, NodeUid, Start};
use annulus_core::state::Lineage;
use annulus_core::version::{Range, Speaks};
use bytes::{Buf, BufMut};

use super::close::Close;
use super::wire::{RecvHalf, SendHalf};

const MAGIC: &[u8; 8] = b"annulus\n";
const BYTES: usize = 8 + 4 + 1 + 16 + 16 + 16 + 16;
/// Optional levels after the fixed part, since the second build. The first build skips them and sends none.
const LEVELS_BYTES: usize = 4 + 4;
/// Optional start number after the levels, in builds that send it.
const START_BYTES: usize = 8 + 8;
/// Later versions may append fields; unknown ones are skipped.
const MAX_BYTES: usize = 4096;

/// The role in which a peer wants to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A member of the cluster.
    Node,
    /// An operator.
    Admin,
    /// A peer without a certificate. It may only ask to join.
    Joiner,
}

/// The identity that a peer claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub speaks: Speaks,
    pub role: Role,
    /// Zero for operators and joiners.
    pub cluster: ClusterId,
    pub lineage: Lineage,
    /// Zero for operators and joiners.
    pub uid: NodeUid,
    pub boot: BootId,
    /// The start number of the node's data directory; `None` from builds that do not send it.
    pub start: Option<Start>,
}

impl Hello {
    /// Return the hello of a peer that is not a node. The first protocol version is enough for it.
    pub(super) fn anonymous(role: Role) -> Self {
        Self {
            speaks: Speaks::FIRST,
            role,
            cluster: ClusterId([0; 16]),
            lineage: Lineage::default(),
            uid: NodeUid([0; 16]),
            boot: BootId([0; 16]),
            start: None,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.put_slice(MAGIC);
        out.put_u16(self.speaks.protocol.oldest as u16);
        out.put_u16(self.speaks.protocol.newest as u16);
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
        if self.speaks.levels != Speaks::FIRST.levels || self.start.is_some() {
            out.put_u32(self.speaks.levels.oldest);
            out.put_u32(self.speaks.levels.newest);
        }
        if let Some(start) = self.start {
            out.put_u64(start.number);
            out.put_u64(start.id);
        }
        out
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, BadHello> {
        if bytes.len() < BYTES || !bytes.starts_with(MAGIC) {
            return Err(BadHello);
        }
        bytes.advance(MAGIC.len());
        let protocol = Range::new(bytes.get_u16().into(), bytes.get_u16().into());
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
        let (uid, boot) = (NodeUid(id()), BootId(id()));
        let levels = match bytes.remaining() {
            0..LEVELS_BYTES => Speaks::FIRST.levels,
            _ => Range::new(bytes.get_u32(), bytes.get_u32()),
        };
        let start = (bytes.remaining() >= START_BYTES)
            .then(|| Start { number: bytes.get_u64(), id: bytes.get_u64() });
        Ok(Self { speaks: Speaks { protocol, levels }, role, cluster, lineage, uid, boot, start })
    }

    /// Check that the two sides share a protocol version.
    pub(super) fn check_version(&self, ours: Range) -> Result<(), (Close, String)> {
        if !self.speaks.protocol.meets(ours) {
            return Err((Close::Version, format!("protocol {} meets protocol {ours}", self.speaks.protocol)));
        }
        Ok(())
    }

    /// Check that the peer is a node of this cluster.
    pub(super) fn check_cluster(&self, cluster: ClusterId) -> Result<(), (Close, String)> {
        if self.cluster != cluster {
            return Err((Close::Cluster, format!("cluster {} meets cluster {cluster}", self.cluster)));
        }
        Ok(())
    }
}

/// Check that a node with these levels can be part of a cluster at this level. Passes while the level is unknown;
/// it is checked again when it is set.
pub(super) fn check_level(uid: NodeUid, levels: Range, level: Option<u32>) -> Result<(), (Close, String)> {
    match level.filter(|level| !levels.has(*level)) {
        None => Ok(()),
        Some(level) => Err((
            Close::Version,
            format!(
                "the cluster is at state level {level} and node {uid} speaks {levels}: run another build there"
            ),
        )),
    }
}

/// The bytes are not a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was said first is no hello")]
pub(super) struct BadHello;

/// Send a hello and end this half of the stream.
pub(super) async fn say(mut send: SendHalf, hello: &Hello) -> Result<(), quinn::WriteError> {
    send.write_all(&hello.encode()).await?;
    // This fails only if it was finished before.
    let _ = send.finish();
    Ok(())
}

/// Read the peer's hello to the end of its half. The caller sets the deadline.
pub(super) async fn hear(recv: &mut RecvHalf) -> Result<Hello, HearError> {
    let bytes = recv.read_to_end(MAX_BYTES).await?;
    Ok(Hello::decode(&bytes)?)
}

/// Reasons for which there is no valid hello from the peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HearError {
    #[error(transparent)]
    Bad(#[from] BadHello),
    #[error(transparent)]
    Read(#[from] quinn::ReadToEndError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn hello() -> impl Strategy<Value = Hello> {
        let role = prop_oneof![Just(Role::Node), Just(Role::Admin), Just(Role::Joiner)];
        let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
        // The hello has all fields, because nothing can follow a hello that omits one.
        let levels = (any::<(u32, u32)>()).prop_map(|(oldest, newest)| Range::new(oldest, newest));
        let start = any::<(u64, u64)>().prop_map(|(number, id)| Start { number, id });
        let protocol =
            any::<(u16, u16)>().prop_map(|(oldest, newest)| Range::new(oldest.into(), newest.into()));
        ((protocol, levels, start), role, ids, any::<(u64, u64)>()).prop_map(
            |((protocol, levels, start), role, (cluster, uid, boot), (number, id))| Hello {
                speaks: Speaks { protocol, levels },
                role,
                cluster: ClusterId(cluster),
                lineage: Lineage { number, id },
                uid: NodeUid(uid),
                boot: BootId(boot),
                start: Some(start),
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
        fn junk_is_not_a_hello(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assume!(!bytes.starts_with(MAGIC));
            prop_assert_eq!(Hello::decode(&bytes), Err(BadHello));
        }
    }

    #[test]
    fn versions_that_do_not_overlap_are_refused_and_others_are_not() {
        let ours = Speaks::THIS.protocol;
        let with = |oldest, newest| {
            let speaks = Speaks { protocol: Range::new(oldest, newest), ..Speaks::THIS };
            Hello { speaks, ..Hello::anonymous(Role::Node) }.check_version(ours).is_ok()
        };
        assert!(with(ours.oldest, ours.newest));
        assert!(with(0, ours.newest + 5));
        assert!(!with(ours.newest + 1, ours.newest + 5));
        assert!(!with(0, ours.oldest - 1));
    }

    /// The first build reads this many bytes, big-endian, and refuses versions that it does not share.
    #[test]
    fn the_first_build_accepts_this_hello_and_its_own_names_the_first_level() {
        let hello = |speaks| Hello { speaks, ..Hello::anonymous(Role::Node) };
        let bytes = hello(Speaks::THIS).encode();
        assert_eq!((bytes.len(), &bytes[8..12]), (BYTES + LEVELS_BYTES, &[0, 1, 0, 3][..]));
        let start = Some(Start { number: 7, id: 9 });
        let bytes = Hello { start, ..hello(Speaks::THIS) }.encode();
        assert_eq!(bytes.len(), BYTES + LEVELS_BYTES + START_BYTES);
        let first = hello(Speaks::FIRST).encode();
        assert_eq!((first.len(), &first[8..12]), (BYTES, &[0, 1, 0, 1][..]));
        assert_eq!(Hello::decode(&first).map(|hello| hello.speaks), Ok(Speaks::FIRST));
    }

    #[test]
    fn a_node_that_does_not_speak_the_clusters_level_is_refused() {
        let first = Hello::anonymous(Role::Node);
        let level_of = |hello: &Hello, level| check_level(hello.uid, hello.speaks.levels, level);
        assert!(level_of(&first, None).is_ok() && level_of(&first, Some(1)).is_ok());
        let (close, reason) = level_of(&first, Some(2)).unwrap_err();
        assert_eq!(close, Close::Version);
        assert!(reason.contains("level 2") && reason.contains("speaks 1:"), "{reason}");
    }
}
