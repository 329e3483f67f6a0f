#![allow(clippy::unwrap_used)]
//! Tests of each command alone; `tests/apply_properties.rs` mixes them.

use super::*;
use crate::mutants::{self, Mutant};
use crate::ring::{Fate, Transfer};

const TOKEN: Digest = Digest([7; 32]);

fn member(name: &str, uid: u8) -> Member {
    Member {
        id: NodeId(99),
        uid: NodeUid([uid; 16]),
        name: name.into(),
        listen: "127.0.0.1:1".into(),
        http: "127.0.0.1:2".into(),
        zone: None,
        weight: 1,
        status: MemberStatus::Down,
        staged: false,
        banned: false,
        key: Some(Digest([uid; 32])),
    }
}

fn found() -> Command {
    Command::Found {
        cluster: ClusterId([1; 16]),
        ring_size: RingSize::try_from(8).unwrap(),
        width: 3,
        founder: member("a@h", 1),
        authority: "cert".into(),
        authority_key: "key".into(),
        level: crate::version::LEVEL,
    }
}

fn admit(name: &str, uid: u8, now_ms: u64) -> Command {
    Command::Admit { member: member(name, uid), token: TOKEN, now_ms }
}

/// Return a cluster founded at index 1, with a token valid until 1000 added at 2, and the members b (id 3)
/// and c (id 4), after the entry at 6.
fn three() -> (Machine, u64) {
    let mut machine = Machine::default();
    let log = [
        found(),
        Command::IssueToken { token: TOKEN, now_ms: 0, expires_ms: 1000, uses: Some(9) },
        admit("b@h", 2, 1),
        admit("c@h", 3, 1),
        Command::Joined { node: NodeId(3) },
        Command::Joined { node: NodeId(4) },
    ];
    for (at, command) in log.iter().enumerate() {
        let outcome = machine.apply(at as u64 + 1, command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{command:?}: {outcome:?}");
    }
    (machine, 6)
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn release(digest: u8) -> Release {
    Release {
        version: 77,
        digest: Digest([digest; 32]),
        bytes: 5,
        description: vec![0xa0],
        config: None,
        call_ms: None,
    }
}

fn deploy(n: Option<u8>, digest: u8, base_version: u64) -> Command {
    Command::Deploy {
        name: "kv".into(),
        n,
        r: None,
        w: None,
        sloppy: None,
        storage: None,
        config: None,
        release: release(digest),
        base_version,
    }
}

#[test]
fn nothing_happens_before_the_founding_and_nobody_founds_twice() {
    let mut machine = Machine::default();
    assert_eq!(refused(machine.apply(1, &Command::Joined { node: NodeId(0) })), Refusal::Founding);
    assert_eq!(machine.state, None);
    assert_eq!(machine.apply(2, &found()), Outcome::Done);
    let state = machine.state.clone().unwrap();
    assert_eq!((state.ring.epoch, state.ring.partitions.len(), state.width), (2, 8, 3));
    assert!(state.ring.iter().all(|(_, p)| p.replicas == [NodeId(0)] && p.version == 2));
    assert_eq!(state.member(NodeId(0)).unwrap().status, MemberStatus::Member);
    assert_eq!((state.authorities.as_slice(), state.authority_key.as_str()), (&["cert".into()][..], ""));
    assert_eq!(refused(machine.apply(3, &found())), Refusal::Founding);
}

#[test]
fn a_node_is_admitted_by_a_token_in_time_under_the_index_of_its_entry() {
    let (mut machine, at) = three();
    assert_eq!(refused(machine.apply(at + 1, &admit("d@h", 4, 1000))), Refusal::BadToken);
    assert_eq!(refused(machine.apply(at + 2, &admit("b@h", 4, 2))), Refusal::NameTaken("b@h".into()));
    assert_eq!(machine.apply(at + 4, &admit("d@h", 4, 2)), Outcome::Admitted(NodeId(10)));
    let token = Command::IssueToken { token: Digest([8; 32]), now_ms: 1000, expires_ms: 1001, uses: None };
    assert_eq!(machine.apply(at + 5, &token), Outcome::Done);
    let state = machine.state.unwrap();
    let tokens: Vec<_> = state.tokens.into_keys().collect();
    assert_eq!(tokens, [Digest([8; 32])], "the old token is forgotten");
    assert_eq!(state.token_uses, [(Digest([8; 32]), 1)].into(), "with its uses");
}

#[test]
fn a_token_admits_as_many_nodes_as_it_states_and_answers_those_again() {
    let (mut machine, at) = three();
    let token = Digest([8; 32]);
    let issue = |uses| Command::IssueToken { token, now_ms: 0, expires_ms: 1000, uses };
    let admit = |name: &str, uid| Command::Admit { member: member(name, uid), token, now_ms: 1 };
    let bad = |machine: &mut Machine, at, command| {
        assert!(matches!(refused(machine.apply(at, &command)), Refusal::BadSetting(_)), "{command:?}");
    };
    bad(&mut machine, at + 1, issue(Some(0)));
    bad(&mut machine, at + 2, issue(Some(MAX_TOKEN_USES + 1)));
    let longer = Command::IssueToken { token, now_ms: 1, expires_ms: 2 + MAX_TOKEN_MS, uses: Some(1) };
    bad(&mut machine, at + 3, longer);
    assert_eq!(machine.apply(at + 4, &issue(Some(1))), Outcome::Done);
    assert_eq!(machine.apply(at + 5, &admit("d@h", 4)), Outcome::Admitted(NodeId(at + 5)));
    assert_eq!(refused(machine.apply(at + 6, &admit("e@h", 5))), Refusal::BadToken);
    assert!(machine.state.as_ref().unwrap().is_spent(&token, 1));
    // The node whose answer was lost gets the same one again, under whatever name it asks.
    assert_eq!(machine.apply(at + 7, &admit("other@h", 4)), Outcome::Admitted(NodeId(at + 5)));
    let names: Vec<_> = machine.state.as_ref().unwrap().live_members().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["a@h", "b@h", "c@h", "d@h"]);
    let late = Command::Admit { member: member("d@h", 4), token, now_ms: 1000 };
    assert_eq!(refused(machine.apply(at + 8, &late)), Refusal::BadToken);
}

#[test]
fn the_uid_of_a_member_is_admitted_again_only_with_its_key_and_while_it_is_joining() {
    let (mut machine, at) = three();
    let with_key = |uid, key| {
        let member = Member { key, ..member("d@h", uid) };
        Command::Admit { member, token: TOKEN, now_ms: 1 }
    };
    let key = |number| Some(Digest([number; 32]));
    let said = |refusal| match refusal {
        Refusal::BadSetting(why) => why,
        other => panic!("{other}"),
    };
    assert_eq!(machine.apply(at + 1, &with_key(4, key(4))), Outcome::Admitted(NodeId(at + 1)));
    let before = machine.state.clone().unwrap();
    let foreign = said(refused(machine.apply(at + 2, &with_key(4, key(5)))));
    assert!(foreign.contains("d@h was admitted with another key"), "{foreign}");
    let keyless = said(refused(machine.apply(at + 3, &with_key(4, None))));
    assert!(keyless.contains("no key"), "{keyless}");
    // b is a member, and has its answer.
    for key in [key(2), key(5)] {
        let known =
            said(refused(machine.apply(at + 4 + u64::from(key == Some(Digest([5; 32]))), &with_key(2, key))));
        assert!(known.contains("b@h (member)"), "{known}");
    }
    let after = machine.state.unwrap();
    assert_eq!(ClusterState { applied: before.applied, ..after }, before);
}

#[test]
fn a_node_that_was_admitted_without_a_key_is_bound_when_it_asks_again() {
    let (mut machine, at) = three();
    assert!(matches!(machine.apply(at + 1, &admit("d@h", 4, 1)), Outcome::Admitted(_)));
    let id = NodeId(at + 1);
    machine.state.as_mut().unwrap().members.get_mut(&id).unwrap().key = None;
    assert_eq!(machine.apply(at + 2, &admit("d@h", 4, 1)), Outcome::Admitted(id));
    assert_eq!(machine.state.as_ref().unwrap().members[&id].key, Some(Digest([4; 32])));
}

#[test]
fn below_their_level_tokens_are_not_counted_and_keys_not_bound() {
    let mut machine = Machine::default();
    let Command::Found { cluster, ring_size, width, founder, authority, authority_key, .. } = found() else {
        panic!()
    };
    let found = Command::Found { cluster, ring_size, width, founder, authority, authority_key, level: 5 };
    machine.apply(1, &found);
    let issue = |uses| Command::IssueToken { token: TOKEN, now_ms: 0, expires_ms: u64::MAX, uses };
    assert!(matches!(refused(machine.apply(2, &issue(Some(1)))), Refusal::Level { needs: 6, .. }));
    assert_eq!(machine.apply(3, &issue(None)), Outcome::Done);
    let keyless = |uid| Command::Admit {
        member: Member { key: None, ..member(&format!("n{uid}@h"), uid) },
        token: TOKEN,
        now_ms: 1,
    };
    for (at, uid) in [(4, 2), (5, 3), (6, 2)] {
        let id = if at == 6 { 4 } else { at };
        assert_eq!(machine.apply(at, &keyless(uid)), Outcome::Admitted(NodeId(id)));
    }
    assert!(matches!(refused(machine.apply(7, &admit("d@h", 4, 1))), Refusal::Level { needs: 6, .. }));
    let state = machine.state.as_ref().unwrap();
    assert!(state.token_uses.is_empty());
    // The key of the authority leaves the state with the level.
    assert_eq!(state.authority_key, "key");
    let known = state.live_members().map(|member| member.id).collect();
    assert_eq!(machine.apply(8, &Command::Raise { level: 6, known }), Outcome::Done);
    assert_eq!(machine.state.unwrap().authority_key, "");
}

#[test]
fn the_leaders_clock_replaces_the_proposers() {
    let issue = Command::IssueToken { token: TOKEN, now_ms: 5000, expires_ms: 5600, uses: None };
    let expected = Command::IssueToken { token: TOKEN, now_ms: 70, expires_ms: 670, uses: None };
    assert_eq!(issue.by_clock(70), expected);
    assert_eq!(admit("d@h", 4, 9).by_clock(70), admit("d@h", 4, 70));
    let turned = Command::IssueToken { token: TOKEN, now_ms: 9, expires_ms: 3, uses: None }.by_clock(70);
    assert_eq!(turned, Command::IssueToken { token: TOKEN, now_ms: 70, expires_ms: 70, uses: None });
}

#[test]
fn a_leaving_node_is_removed_when_it_holds_nothing_and_frees_its_name_but_not_its_uid() {
    let (mut machine, at) = three();
    assert_eq!(
        refused(machine.apply(at + 1, &Command::Removed { node: NodeId(3) })),
        Refusal::Status { node: "b@h".into(), status: "member".into() }
    );
    for (step, node) in [0, 3].into_iter().enumerate() {
        assert_eq!(
            machine.apply(at + 2 + step as u64, &Command::Leave { node: NodeId(node) }),
            Outcome::Done
        );
    }
    assert_eq!(refused(machine.apply(at + 4, &Command::Leave { node: NodeId(4) })), Refusal::LastMember);
    assert_eq!(
        refused(machine.apply(at + 5, &Command::Removed { node: NodeId(0) })),
        Refusal::Holding("a@h".into())
    );
    assert_eq!(machine.apply(at + 6, &Command::Removed { node: NodeId(3) }), Outcome::Done);
    assert!(matches!(refused(machine.apply(at + 7, &admit("b@h", 2, 2))), Refusal::Status { .. }));
    assert_eq!(machine.apply(at + 8, &admit("b@h", 5, 2)), Outcome::Admitted(NodeId(14)));
    let moved = Command::Moved { node: NodeId(3), listen: "x:1".into(), http: "x:2".into() };
    assert_eq!(refused(machine.apply(at + 9, &moved)), Refusal::NotMember("3".into()));
}

#[test]
fn a_table_computed_from_another_ring_is_refused() {
    let refuses = || {
        let (mut machine, at) = three();
        let stale = Command::Rebalance { base: 0, table: vec![vec![NodeId(0)]; 8] };
        machine.apply(at + 1, &stale) == Outcome::Refused(Refusal::RingChanged)
    };
    assert!(refuses());
    assert!(!mutants::during(Some(Mutant::RebalanceWithoutBase), refuses));
}

#[test]
fn a_rebalance_keeps_cancels_or_makes_transfers_and_only_a_pending_one_flips() {
    let (mut machine, at) = three();
    let (a, b, c) = (NodeId(0), NodeId(3), NodeId(4));
    let mut table = vec![vec![a]; 8];
    table[1] = vec![b, a];
    table[2] = vec![c];
    let rebalance = |base, table: &Vec<Vec<NodeId>>| Command::Rebalance { base, table: table.clone() };
    assert_eq!(refused(machine.apply(at + 1, &rebalance(0, &table))), Refusal::RingChanged);
    assert_eq!(machine.apply(at + 2, &rebalance(1, &table)), Outcome::Done);
    let ring = |machine: &Machine| machine.state.as_ref().unwrap().ring.clone();
    assert_eq!(ring(&machine).epoch, 8);
    assert_eq!(
        ring(&machine).transfers().map(|(id, t)| (id.0, t.id.0)).collect::<Vec<_>>(),
        [(1, 8), (2, 8)]
    );

    // The transfer of partition 1 stays, that of 2 is cancelled, that of 3 starts.
    table[2] = vec![a];
    table[3] = vec![c, b, a];
    assert_eq!(machine.apply(at + 3, &rebalance(8, &table)), Outcome::Done);
    let pending: Vec<_> = ring(&machine).transfers().map(|(id, t)| (id.0, t.id.0)).collect();
    assert_eq!(pending, [(1, 8), (3, 9)]);

    let (one, two) = ((PartitionId(1), TransferId(8)), (PartitionId(2), TransferId(8)));
    let unknown = (PartitionId(500), TransferId(8));
    let flip = Command::Flip { transfers: vec![two, one, one, unknown, (PartitionId(3), TransferId(8))] };
    assert_eq!(machine.apply(at + 4, &flip), Outcome::Flipped(vec![one]));
    let partition = ring(&machine).partition(PartitionId(1)).clone();
    assert_eq!((partition.replicas, partition.version, partition.pending), (vec![b, a], 10, None));

    let fate = |id: u16, transfer, has_given| {
        ring(&machine).partition(PartitionId(id)).fate_of(TransferId(transfer), has_given)
    };
    assert_eq!(
        (fate(1, 8, false), fate(2, 8, false), fate(3, 9, true)),
        (Fate::Flipped, Fate::Cancelled, Fate::Pending)
    );
    // Partition 1 appears to have moved from transfer 7 to 8, and a node that was not running asks for 7.
    assert_eq!((fate(1, 7, true), fate(1, 7, false)), (Fate::Flipped, Fate::Cancelled));

    let cancel = |transfer| Command::Cancel { partition: PartitionId(3), transfer: TransferId(transfer) };
    assert_eq!(refused(machine.apply(at + 5, &cancel(8))), Refusal::NotPending(TransferId(8)));
    assert_eq!(machine.apply(at + 6, &cancel(9)), Outcome::Done);
    let again = Transfer::new(TransferId(12), vec![c, b, a]);
    assert_eq!(machine.state.unwrap().pending_of(PartitionId(3)), Some(&again));
}

#[test]
fn an_invalid_table_is_refused_with_the_reason() {
    let (mut machine, at) = three();
    let a = NodeId(0);
    let mut index = at;
    let bad_sets = [vec![], vec![a, a], vec![NodeId(77)], vec![a, NodeId(3), NodeId(4), NodeId(5)]];
    for set in bad_sets {
        let mut table = vec![vec![a]; 8];
        table[7] = set;
        index += 1;
        let outcome = machine.apply(index, &Command::Rebalance { base: 1, table });
        assert!(matches!(refused(outcome), Refusal::BadTable(_)));
    }
    let short = Command::Rebalance { base: 1, table: vec![vec![a]; 7] };
    assert!(matches!(refused(machine.apply(index + 1, &short)), Refusal::BadTable(_)));
    machine.apply(index + 2, &Command::Leave { node: NodeId(3) });
    let to_leaver = Command::Rebalance { base: 1, table: vec![vec![NodeId(3)]; 8] };
    assert!(matches!(refused(machine.apply(index + 3, &to_leaver)), Refusal::BadTable(_)));
}

#[test]
fn deploys_count_versions_and_roll_back_to_the_one_before() {
    let (mut machine, at) = three();
    let uid = ModuleUid(at + 2);
    assert!(matches!(refused(machine.apply(at + 1, &deploy(Some(4), 1, 0))), Refusal::BadSetting(_)));
    assert_eq!(machine.apply(at + 2, &deploy(Some(3), 1, 0)), Outcome::Deployed(uid, 1));
    assert_eq!(
        refused(machine.apply(at + 3, &Command::Rollback { name: "kv".into(), base: None, to: None })),
        Refusal::NoPrevious("kv".into())
    );
    assert_eq!(refused(machine.apply(at + 4, &deploy(None, 2, 0))), Refusal::DeployRaced("kv".into()));
    assert_eq!(machine.apply(at + 5, &deploy(None, 2, 1)), Outcome::Deployed(uid, 2));
    assert_eq!(
        machine.apply(at + 6, &Command::Rollback { name: "kv".into(), base: None, to: None }),
        Outcome::Deployed(uid, 3)
    );
    let module = machine.state.as_ref().unwrap().module_by_name("kv").unwrap().clone();
    assert_eq!((module.n, module.r, module.w), (3, 2, 2));
    assert_eq!((module.current.digest, module.current.version), (Digest([1; 32]), 3));
    assert_eq!(module.previous.unwrap().digest, Digest([2; 32]));
    assert_eq!(module.changed, at + 6);
    let undeploy = Command::Undeploy { name: "kv".into(), base: None };
    assert_eq!(machine.apply(at + 7, &undeploy), Outcome::Done);
    assert_eq!(refused(machine.apply(at + 8, &undeploy)), Refusal::NoModule("kv".into()));
    assert_eq!(machine.apply(at + 9, &deploy(None, 1, 0)), Outcome::Deployed(ModuleUid(at + 9), 1));
}

fn configured(digest: u8, config: &[u8], base_version: u64) -> Command {
    match deploy(None, digest, base_version) {
        Command::Deploy { name, n, r, w, sloppy, storage, release, base_version, .. } => Command::Deploy {
            name,
            n,
            r,
            w,
            sloppy,
            storage,
            release,
            base_version,
            config: Some(config.to_vec()),
        },
        other => other,
    }
}

#[test]
fn a_rollback_brings_back_the_settings_of_its_release() {
    let (mut machine, at) = three();
    let kv = |machine: &Machine| machine.state.as_ref().unwrap().module_by_name("kv").unwrap().clone();
    for version in 0..3u8 {
        machine.apply(at + 1 + u64::from(version), &configured(version, &[version], u64::from(version)));
    }
    let back = |to| Command::Rollback { name: "kv".into(), base: None, to };
    assert_eq!(machine.apply(at + 4, &back(None)), Outcome::Deployed(ModuleUid(at + 1), 4));
    assert_eq!((kv(&machine).config, kv(&machine).current.digest), (vec![1], Digest([1; 32])));
    machine.apply(at + 5, &back(Some(1)));
    assert_eq!((kv(&machine).config, kv(&machine).current.digest), (vec![0], Digest([0; 32])));
    let kept: Vec<u64> = kv(&machine).releases().map(|release| release.version).collect();
    assert_eq!(kept, [5, 4, 3, 2, 1]);
    let missing = Refusal::NoRelease { name: "kv".into(), version: 5 };
    assert_eq!(refused(machine.apply(at + 6, &back(Some(5)))), missing, "what runs is none to go back to");
    for more in 0..20 {
        machine.apply(at + 7 + more, &configured(9, &[9], 5 + more));
    }
    assert_eq!(kv(&machine).releases().count(), 2 + OLDER_RELEASES);
}

#[test]
fn a_call_limit_belongs_to_its_release_and_is_of_level_four() {
    let (mut machine, mut at) = three();
    let limited = |call_ms, base_version| match deploy(None, 1, base_version) {
        Command::Deploy { name, n, r, w, sloppy, storage, config, release, base_version } => {
            let release = Release { call_ms, ..release };
            Command::Deploy { name, n, r, w, sloppy, storage, config, release, base_version }
        }
        other => other,
    };
    let call_ms =
        |machine: &Machine| machine.state.as_ref().unwrap().module_by_name("kv").unwrap().current.call_ms;
    for bad in [0, *CALL_MS.start() - 1, *CALL_MS.end() + 1, u64::MAX] {
        at += 1;
        let refusal = refused(machine.apply(at, &limited(Some(bad), 0)));
        assert!(matches!(refusal, Refusal::BadSetting(_)), "{bad}");
    }
    machine.apply(at + 2, &limited(Some(20_000), 0));
    assert_eq!(call_ms(&machine), Some(20_000));
    machine.apply(at + 3, &limited(None, 1));
    assert_eq!(call_ms(&machine), None);
    machine.apply(at + 4, &Command::Rollback { name: "kv".into(), base: None, to: None });
    assert_eq!(call_ms(&machine), Some(20_000));
    machine.state.as_mut().unwrap().level = 3;
    let refusal = refused(machine.apply(at + 5, &limited(Some(20_000), 3)));
    assert!(matches!(refusal, Refusal::Level { needs: 4, level: 3, .. }), "{refusal:?}");
}

#[test]
fn the_items_of_a_module_stay_on_disk_or_in_memory() {
    let kinds = [None, Some(StorageKind::Memory), Some(StorageKind::Durable)];
    let stored = |storage, base_version| match deploy(None, 1, base_version) {
        Command::Deploy { name, n, r, w, sloppy, config, release, base_version, .. } => {
            Command::Deploy { name, n, r, w, sloppy, storage, config, release, base_version }
        }
        other => other,
    };
    for first in kinds {
        let (mut machine, at) = three();
        let kind = |machine: &Machine| machine.state.as_ref().unwrap().module_by_name("kv").unwrap().storage;
        machine.apply(at + 1, &stored(first, 0));
        let before = kind(&machine);
        assert_eq!(before, first.unwrap_or(StorageKind::Memory));
        for (index, then) in kinds.into_iter().enumerate() {
            let version = machine.state.as_ref().unwrap().module_by_name("kv").unwrap().current.version;
            let outcome = machine.apply(at + 2 + index as u64, &stored(then, version));
            let same = then.is_none_or(|then| then == before);
            assert_eq!(matches!(outcome, Outcome::Deployed(..)), same, "{first:?} {then:?}: {outcome:?}");
            assert_eq!(kind(&machine), before);
        }
        machine.state.as_mut().unwrap().level = 4;
        let refusal = refused(machine.apply(at + 5, &stored(Some(StorageKind::Durable), 9)));
        assert!(matches!(refusal, Refusal::Level { needs: 5, level: 4, .. }), "{refusal:?}");
    }
}

#[test]
fn before_level_three_settings_are_the_modules_and_one_release_is_kept() {
    let (mut machine, at) = three();
    machine.state.as_mut().unwrap().level = 2;
    for version in 0..3u8 {
        machine.apply(at + 1 + u64::from(version), &configured(version, &[version], u64::from(version)));
    }
    machine.apply(at + 4, &Command::Rollback { name: "kv".into(), base: None, to: None });
    let module = machine.state.as_ref().unwrap().module_by_name("kv").unwrap();
    assert_eq!((&module.config[..], module.older.len(), &module.current.config), (&[2][..], 0, &None));
}

#[test]
fn a_command_for_another_release_changes_nothing() {
    let (mut machine, at) = three();
    machine.apply(at + 1, &deploy(None, 1, 0));
    let seen = machine.state.as_ref().unwrap().module_by_name("kv").unwrap().base();
    machine.apply(at + 2, &deploy(None, 2, 1));
    let changed = Refusal::ModuleChanged("kv".into());
    let rollback = |base| Command::Rollback { name: "kv".into(), base: Some(base), to: None };
    let undeploy = |base| Command::Undeploy { name: "kv".into(), base: Some(base) };
    assert_eq!(refused(machine.apply(at + 3, &rollback(seen))), changed);
    assert_eq!(refused(machine.apply(at + 4, &undeploy(seen))), changed);
    let now = ModuleBase { version: 2, ..seen };
    assert_eq!(machine.apply(at + 5, &undeploy(now)), Outcome::Done);
    // Another module has that name now.
    machine.apply(at + 6, &deploy(None, 1, 0));
    machine.apply(at + 7, &deploy(None, 2, 1));
    assert_eq!(refused(machine.apply(at + 8, &rollback(now))), changed);
}

#[test]
fn the_claimed_table_is_accepted_and_leaves_nothing_to_do() {
    let (mut machine, at) = three();
    let table = machine.state.as_ref().unwrap().claimed_table();
    assert!(!machine.state.as_ref().unwrap().is_balanced());
    assert_eq!(machine.apply(at + 1, &Command::Rebalance { base: 1, table }), Outcome::Done);
    assert!(machine.state.as_ref().unwrap().is_balanced());
    assert_eq!(machine.apply(at + 2, &Command::Leave { node: NodeId(4) }), Outcome::Done);
    assert!(!machine.state.as_ref().unwrap().is_balanced(), "partitions aimed at a leaver must go elsewhere");
}

#[test]
fn a_recovery_takes_the_newest_state_and_names_what_is_lost() {
    let (mut machine, at) = three();
    let (a, b, c) = (NodeId(0), NodeId(3), NodeId(4));
    let table = machine.state.as_ref().unwrap().claimed_table();
    machine.apply(at + 1, &Command::Rebalance { base: 1, table });
    let older = machine.state.clone().unwrap();
    let given: Vec<_> = older.ring.transfers().map(|(id, transfer)| (id, transfer.id)).take(2).collect();
    machine.apply(at + 2, &Command::Flip { transfers: given.clone() });
    let newest = machine.state.unwrap();

    assert_eq!(Recovery::from_answers(Vec::new()), None);
    let answer = |node, state: &ClusterState| Answer { node, state: state.clone() };
    let recovery = Recovery::from_answers(vec![answer(a, &older), answer(b, &newest)]).unwrap();
    assert_eq!((recovery.from, &recovery.state), (b, &newest));
    assert_eq!(recovery.behind, [(a, Lineage::default(), older.applied)]);
    assert_eq!((recovery.answered.as_slice(), recovery.lost.as_slice()), (&[a, b][..], &[c][..]));
    let of_c = newest.ring.iter().filter(|(_, p)| p.replicas[0] == c).map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(recovery.without_owner, of_c);
    assert_eq!(recovery.cancelled.len(), newest.ring.transfers().count());
    assert!(recovery.cancelled.iter().all(|transfer| !given.contains(transfer)));
}

#[test]
fn a_new_lineage_keeps_the_holders_and_uses_no_number_twice() {
    let (mut machine, at) = three();
    let table = machine.state.as_ref().unwrap().claimed_table();
    machine.apply(at + 1, &Command::Rebalance { base: 1, table });
    let before = machine.state.unwrap();
    let recovered = before.recovered(Lineage::default(), 77 << 40, &[]);
    assert_eq!(recovered.lineage, Lineage { number: 1, id: 77 << 40 });
    assert_eq!(recovered.applied, recovered.lineage.first_index());
    assert!(recovered.applied > before.applied + (1 << 32), "no number of the lost log comes again");
    assert_eq!(recovered.ring.epoch, recovered.applied);
    for ((_, old), (_, new)) in before.ring.iter().zip(recovered.ring.iter()) {
        assert_eq!((&new.replicas, new.version, &new.pending), (&old.replicas, recovered.applied, &None));
        // Senders and receivers learn that the transfer was cancelled.
        if let Some(transfer) = &old.pending {
            let has_given = |node: NodeId| new.replicas[0] != node;
            assert_eq!(new.fate_of(transfer.id, has_given(old.replicas[0])), Fate::Cancelled);
        }
    }
    let rival = before.recovered(Lineage::default(), 78 << 40, &[]);
    assert!(rival.lineage > recovered.lineage && rival.applied >= recovered.applied + (1 << 16));
    assert_eq!(before.recovered(Lineage::default(), u64::MAX, &[]).applied, (2 << 44) - (1 << 16));
    assert!(
        recovered.recovered(Lineage::default(), 0, &[]).applied > rival.applied,
        "nor does a later lineage"
    );
    // The lineage continues from there.
    let mut machine = Machine { state: Some(recovered.clone()) };
    assert_eq!(machine.apply(recovered.applied + 1, &Command::Leave { node: NodeId(4) }), Outcome::Done);
}
