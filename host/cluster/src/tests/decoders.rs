//! Arbitrary and damaged bytes for the decoders of this package.

use annulus_core::codec::{decode, encode};
use annulus_core::junk::{Target, attack, done};
use annulus_core::state::Lineage;
use annulus_data_dir::AuthorityKey;
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};

use super::evidence::{StartEvidence, Starting};
use super::messages::{
    Addresses, Announce, AnnounceReply, AuthorityMessage, AuthorityReply, FetchState, FetchStateReply,
    JoinReply, JoinRequest, OfLineage, ProposeReply, Subject,
};
use super::*;

#[test]
fn no_bytes_make_a_decoder_panic() {
    let vote = openraft::Vote::new_committed(3, 7);
    let entry = raft::Entry {
        log_id: openraft::LogId::new(openraft::CommittedLeaderId::new(3, 7), 9),
        payload: openraft::EntryPayload::Normal(token(5)),
    };
    let append: AppendEntriesRequest<raft::RaftTypes> =
        AppendEntriesRequest { vote, prev_log_id: None, entries: vec![entry], leader_commit: None };
    let ballot = VoteRequest { vote, last_log_id: None };
    let snapshot: InstallSnapshotRequest<raft::RaftTypes> =
        InstallSnapshotRequest { vote, meta: Default::default(), offset: 0, data: vec![1, 2], done: true };
    let request = JoinRequest {
        cluster: ClusterId([9; 16]),
        member: member(2),
        public_key: vec![4; 65],
        secret: vec![1; 16],
        ring_size: None,
        speaks: Speaks::THIS,
        operator_key: Some(serde_bytes::ByteBuf::from(vec![4; 65])),
    };
    let key = AuthorityKey { certificate: "c".into(), key: "k".into() };
    let sign = AuthorityMessage::Sign { subject: Subject::Operator, public_key: vec![4; 65], index: 1 };
    let announce = Announce { listen: "127.0.0.1:1".parse().unwrap(), stamp: None };
    let of_lineage = OfLineage { lineage: Lineage { number: 1, id: 2 }, kind: 16, payload: vec![1] };
    let start = Start { number: 1, id: 2 };
    let lineage = Lineage { number: 1, id: 2 };
    let secret = Token::generate(ClusterId([9; 16]), &authority_pem()).unwrap().to_string();
    attack(&[
        Target {
            name: "AppendEntriesRequest",
            valid: vec![encode(&append).unwrap()],
            decode: |bytes| done(decode::<AppendEntriesRequest<raft::RaftTypes>>(bytes)),
        },
        Target {
            name: "the answer to LEADS",
            valid: vec![encode(&true).unwrap()],
            decode: |bytes| done(decode::<bool>(bytes)),
        },
        Target {
            name: "the answer to HINTS",
            valid: vec![encode(&7_usize).unwrap()],
            decode: |bytes| done(decode::<usize>(bytes)),
        },
        Target {
            name: "the question of HINTS",
            valid: vec![encode(&7_u64).unwrap()],
            decode: |bytes| done(decode::<u64>(bytes)),
        },
        Target {
            name: "VoteRequest",
            valid: vec![encode(&ballot).unwrap()],
            decode: |bytes| done(decode::<VoteRequest<u64>>(bytes)),
        },
        Target {
            name: "InstallSnapshotRequest",
            valid: vec![encode(&snapshot).unwrap()],
            decode: |bytes| done(decode::<InstallSnapshotRequest<raft::RaftTypes>>(bytes)),
        },
        Target {
            name: "JoinRequest",
            valid: vec![encode(&request).unwrap()],
            decode: |bytes| done(decode::<JoinRequest>(bytes)),
        },
        Target {
            name: "JoinReply",
            valid: vec![
                encode(&JoinReply::Unavailable("no".into())).unwrap(),
                encode(&JoinReply::Unknown).unwrap(),
            ],
            decode: |bytes| done(decode::<JoinReply>(bytes)),
        },
        Target {
            name: "AuthorityMessage",
            valid: vec![encode(&sign).unwrap(), encode(&AuthorityMessage::Take(key.clone())).unwrap()],
            decode: |bytes| done(decode::<AuthorityMessage>(bytes)),
        },
        Target {
            name: "AuthorityReply",
            valid: vec![encode(&AuthorityReply::Key(key)).unwrap()],
            decode: |bytes| done(decode::<AuthorityReply>(bytes)),
        },
        Target {
            name: "Announce",
            valid: vec![encode(&announce).unwrap()],
            decode: |bytes| done(decode::<Announce>(bytes)),
        },
        Target {
            name: "AnnounceReply",
            valid: vec![encode(&AnnounceReply::Member).unwrap()],
            decode: |bytes| done(decode::<AnnounceReply>(bytes)),
        },
        Target {
            name: "Addresses",
            valid: vec![encode(&Addresses { index: 1, known: Vec::new() }).unwrap()],
            decode: |bytes| done(decode::<Addresses>(bytes)),
        },
        Target {
            name: "OfLineage",
            valid: vec![encode(&of_lineage).unwrap()],
            decode: |bytes| done(decode::<OfLineage>(bytes)),
        },
        Target {
            name: "FetchState and its reply",
            valid: vec![
                encode(&FetchState { newer_than: 3 }).unwrap(),
                encode(&FetchStateReply::None).unwrap(),
            ],
            decode: |bytes| done((decode::<FetchState>(bytes), decode::<FetchStateReply>(bytes))),
        },
        Target {
            name: "ProposeReply",
            valid: vec![encode(&ProposeReply::NotLeader { leader: Some(NodeId(3)) }).unwrap()],
            decode: |bytes| done(decode::<ProposeReply>(bytes)),
        },
        Target {
            name: "Starting, StartEvidence, Start, Lineage",
            valid: vec![encode(&start).unwrap(), encode(&lineage).unwrap()],
            decode: |bytes| {
                done((decode::<Starting>(bytes), decode::<StartEvidence>(bytes)));
                done((decode::<Start>(bytes), decode::<Lineage>(bytes)));
            },
        },
        Target {
            name: "Token",
            valid: vec![secret.into_bytes()],
            decode: |bytes| done(String::from_utf8_lossy(bytes).parse::<Token>()),
        },
    ]);
}

fn authority_pem() -> String {
    annulus_transport::identity::Authority::create(ClusterId([9; 16])).unwrap().cert_pem
}
