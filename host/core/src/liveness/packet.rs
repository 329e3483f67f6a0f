//! Contents of a datagram: foca's SWIM packets, and those of the watch.
//!
//! A datagram has at most [`MAX_PACKET`] bytes. The connection identifies the sender, so packets of the watch do
//! not name it. Bytes from outside are parsed into a [`Packet`] here, or rejected.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::ids::{NodeId, NodeUid};

use super::identity::Generation;

/// The largest size that fits into one datagram on any path that carries QUIC (1200 bytes), with QUIC's header.
pub const MAX_PACKET: usize = 1100;

/// The maximum number of entries in one table packet, at 21 bytes each.
pub(super) const ENTRIES: usize = 47;

/// Belief of one node about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    Unknown,
    Alive(Generation),
    /// Suspected in this incarnation.
    Suspect(Generation, u16),
    Down(Generation),
}

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub node: NodeId,
    pub generation: Generation,
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// A packet of foca's.
    Swim(Bytes),
    Ping(PingBody),
    /// The reply; `clock` is copied from the ping.
    Pong(PingBody),
    /// A request for an indirect ping.
    Ask {
        target: NodeUid,
        clock: u64,
    },
    /// A report that the target has replied. `clock` is copied from the `Ask`.
    Heard {
        target: NodeUid,
        generation: Generation,
        clock: u64,
    },
    /// A part of the sender's table. If it `wants` a reply, which only the last part does, the receiver sends its
    /// own table.
    Table {
        wants: bool,
        entries: Vec<Entry>,
    },
}

/// Contents of a ping and a pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PingBody {
    /// The pinging node's clock when it pinged, in milliseconds.
    pub clock: u64,
    /// The sender's generation.
    pub mine: Generation,
    /// The sender's belief about the receiver.
    pub yours: Belief,
    /// Hash of the sender's table.
    pub table: u64,
}

mod kind {
    pub const SWIM: u8 = 0;
    pub const PING: u8 = 1;
    pub const PONG: u8 = 2;
    pub const ASK: u8 = 3;
    pub const HEARD: u8 = 4;
    pub const TABLE: u8 = 5;
}

impl Packet {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        match self {
            Self::Swim(bytes) => {
                out.put_u8(kind::SWIM);
                out.put_slice(bytes);
            }
            Self::Ping(body) => put_body(&mut out, kind::PING, body),
            Self::Pong(body) => put_body(&mut out, kind::PONG, body),
            Self::Ask { target, clock } => {
                out.put_u8(kind::ASK);
                out.put_slice(&target.0);
                out.put_u64(*clock);
            }
            Self::Heard { target, generation, clock } => {
                out.put_u8(kind::HEARD);
                out.put_slice(&target.0);
                put_generation(&mut out, *generation);
                out.put_u64(*clock);
            }
            Self::Table { wants, entries } => {
                debug_assert!(entries.len() <= ENTRIES);
                out.put_u8(kind::TABLE);
                out.put_u8(u8::from(*wants));
                for entry in entries {
                    out.put_u64(entry.node.0);
                    put_generation(&mut out, entry.generation);
                    out.put_u8(u8::from(entry.up));
                }
            }
        }
        debug_assert!(out.len() <= MAX_PACKET);
        out.freeze()
    }

    /// Parse a datagram. `None` if it is malformed.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() > MAX_PACKET {
            return None;
        }
        let kind = bytes.try_get_u8().ok()?;
        if kind == kind::SWIM {
            return Some(Self::Swim(bytes));
        }
        let from = &mut bytes;
        let packet = match kind {
            kind::PING => Self::Ping(body(from)?),
            kind::PONG => Self::Pong(body(from)?),
            kind::ASK => Self::Ask { target: uid(from)?, clock: from.try_get_u64().ok()? },
            kind::HEARD => Self::Heard {
                target: uid(from)?,
                generation: generation(from)?,
                clock: from.try_get_u64().ok()?,
            },
            kind::TABLE => Self::Table { wants: flag(from)?, entries: entries(from)? },
            _ => return None,
        };
        from.is_empty().then_some(packet)
    }
}

fn put_body(out: &mut BytesMut, kind: u8, body: &PingBody) {
    out.put_u8(kind);
    out.put_u64(body.clock);
    put_generation(out, body.mine);
    match body.yours {
        Belief::Unknown => out.put_u8(0),
        Belief::Alive(generation) => {
            out.put_u8(1);
            put_generation(out, generation);
        }
        Belief::Suspect(generation, incarnation) => {
            out.put_u8(2);
            put_generation(out, generation);
            out.put_u16(incarnation);
        }
        Belief::Down(generation) => {
            out.put_u8(3);
            put_generation(out, generation);
        }
    }
    out.put_u64(body.table);
}

fn put_generation(out: &mut BytesMut, generation: Generation) {
    out.put_u64(generation.boot);
    out.put_u32(generation.renewed);
}

fn body(from: &mut Bytes) -> Option<PingBody> {
    let clock = from.try_get_u64().ok()?;
    let mine = generation(from)?;
    let yours = match from.try_get_u8().ok()? {
        0 => Belief::Unknown,
        1 => Belief::Alive(generation(from)?),
        2 => Belief::Suspect(generation(from)?, from.try_get_u16().ok()?),
        3 => Belief::Down(generation(from)?),
        _ => return None,
    };
    Some(PingBody { clock, mine, yours, table: from.try_get_u64().ok()? })
}

/// Read a generation. A packet with the barred generation is rejected, because no node has it.
fn generation(from: &mut Bytes) -> Option<Generation> {
    let boot = from.try_get_u64().ok()?;
    let renewed = from.try_get_u32().ok()?;
    Some(Generation { boot, renewed }).filter(|generation| *generation < Generation::BARRED)
}

fn uid(from: &mut Bytes) -> Option<NodeUid> {
    let mut uid = [0; 16];
    from.try_copy_to_slice(&mut uid).ok()?;
    Some(NodeUid(uid))
}

fn flag(from: &mut Bytes) -> Option<bool> {
    match from.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn entries(from: &mut Bytes) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !from.is_empty() {
        let node = NodeId(from.try_get_u64().ok()?);
        entries.push(Entry { node, generation: generation(from)?, up: flag(from)? });
    }
    (entries.len() <= ENTRIES).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_generation() -> impl Strategy<Value = Generation> {
        (0..u64::MAX, any::<u32>()).prop_map(|(boot, renewed)| Generation { boot, renewed })
    }

    fn a_body() -> impl Strategy<Value = PingBody> {
        let belief = prop_oneof![
            Just(Belief::Unknown),
            a_generation().prop_map(Belief::Alive),
            (a_generation(), any::<u16>()).prop_map(|(g, i)| Belief::Suspect(g, i)),
            a_generation().prop_map(Belief::Down),
        ];
        (any::<u64>(), a_generation(), belief, any::<u64>())
            .prop_map(|(clock, mine, yours, table)| PingBody { clock, mine, yours, table })
    }

    fn a_packet() -> impl Strategy<Value = Packet> {
        let uid = any::<[u8; 16]>().prop_map(NodeUid);
        let entry = (any::<u64>(), a_generation(), any::<bool>()).prop_map(|(node, generation, up)| Entry {
            node: NodeId(node),
            generation,
            up,
        });
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..MAX_PACKET).prop_map(|b| Packet::Swim(b.into())),
            a_body().prop_map(Packet::Ping),
            a_body().prop_map(Packet::Pong),
            (uid.clone(), any::<u64>()).prop_map(|(target, clock)| Packet::Ask { target, clock }),
            (uid, a_generation(), any::<u64>()).prop_map(|(target, generation, clock)| Packet::Heard {
                target,
                generation,
                clock
            }),
            (any::<bool>(), prop::collection::vec(entry, 0..=ENTRIES))
                .prop_map(|(wants, entries)| Packet::Table { wants, entries }),
        ]
    }

    proptest! {
        #[test]
        fn a_packet_survives_the_wire_and_fits_into_a_datagram(packet in a_packet()) {
            let bytes = packet.encode();
            prop_assert!(bytes.len() <= MAX_PACKET);
            prop_assert_eq!(Packet::decode(bytes), Some(packet));
        }

        #[test]
        fn malformed_and_truncated_packets_are_rejected(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            // Decoding must not panic, and the decoded packet must encode to the same bytes.
            if let Some(packet) = Packet::decode(bytes.clone().into()) {
                prop_assert_eq!(packet.encode(), Bytes::from(bytes));
            }
        }
    }
}
