//! Join tokens, and the admission of nodes by them.
//!
//! From state level 6 on, a token admits a counted number of nodes, and an admission binds a node to its public key:
//! the uid of a node is no secret, so an answer to whoever names it would give that node's certificate away. The
//! clock of the leader decides when a token ends.

use crate::ids::{Digest, NodeId};

use super::{Change, ClusterState, Command, Member, MemberStatus, Outcome, Refusal, apply};

/// The first level with counted tokens and bound keys.
const BOUND: u32 = 6;

/// The longest life of a token, in milliseconds: 24 hours.
pub const MAX_TOKEN_MS: u64 = 24 * 3600 * 1000;

/// The largest number of nodes that a token may admit.
pub const MAX_TOKEN_USES: u32 = 1000;

impl ClusterState {
    /// Return true if tokens are counted and admissions bind keys.
    pub fn binds_keys(&self) -> bool {
        self.level >= BOUND
    }

    pub(super) fn issue_token(
        &mut self,
        token: Digest,
        now_ms: u64,
        expires_ms: u64,
        uses: Option<u32>,
    ) -> Result<Outcome, Refusal> {
        if expires_ms <= now_ms {
            return Err(Refusal::BadSetting("a join token must end after it is made".into()));
        }
        // An older build that applies this entry at a lower level knows no limits.
        if self.binds_keys() {
            let uses = uses.unwrap_or(1);
            check_limits(expires_ms - now_ms, uses)?;
            self.token_uses.insert(token, uses);
        }
        self.tokens.retain(|_, ends_ms| *ends_ms > now_ms);
        self.tokens.insert(token, expires_ms);
        self.token_uses.retain(|token, _| self.tokens.contains_key(token));
        Ok(Outcome::Done)
    }

    /// Return true if the token has ended by this clock, or admits no further node. Neither can change any more. An
    /// unknown token is not spent.
    pub fn is_spent(&self, token: &Digest, now_ms: u64) -> bool {
        self.tokens.get(token).is_some_and(|ends_ms| *ends_ms <= now_ms) || self.uses_left(token) == Some(0)
    }

    /// Return the number of nodes that a token still admits; `None` if it is not counted.
    pub fn uses_left(&self, token: &Digest) -> Option<u32> {
        self.token_uses.get(token).copied()
    }

    /// Return the id of a node that asks again to be admitted; `None` if its uid is new. A node that asks again has
    /// not stored the answer, so it is still joining, and shows the key of its admission.
    pub fn admitted_before(&self, member: &Member) -> Result<Option<NodeId>, Refusal> {
        let Some(known) = self.member_by_uid(member.uid) else { return Ok(None) };
        if !known.is_live() {
            return Err(apply::wrong_status(known));
        }
        if !self.binds_keys() {
            return Ok(Some(known.id));
        }
        if known.status != MemberStatus::Joining {
            return Err(Refusal::BadSetting(format!(
                "a member with this uid exists already, {} ({}); only the data directory of a node proves that it is \
                 that node",
                known.name, known.status
            )));
        }
        // A node that was admitted at a lower level has no key in the table yet.
        if known.key.is_some() && known.key != member.key {
            return Err(Refusal::BadSetting(format!(
                "{} was admitted with another key: it can continue only from its own data directory",
                known.name
            )));
        }
        Ok(Some(known.id))
    }

    /// Admit a node. The token is checked first, also for a known uid: a certificate is signed because of the answer,
    /// and a uid is not a secret.
    pub(super) fn admit(
        &mut self,
        index: u64,
        member: &Member,
        token: &Digest,
        now_ms: u64,
    ) -> Result<Outcome, Refusal> {
        if self.tokens.get(token).is_none_or(|ends_ms| *ends_ms <= now_ms) {
            return Err(Refusal::BadToken);
        }
        apply::check_member(member)?;
        if self.binds_keys() && member.key.is_none() {
            return Err(Refusal::BadSetting("the admission names no key; ask again".into()));
        }
        if let Some(id) = self.admitted_before(member)? {
            let known = self.live_member_mut(id)?;
            known.key = known.key.or(member.key);
            return Ok(Outcome::Admitted(id));
        }
        if self.uses_left(token) == Some(0) {
            return Err(Refusal::BadToken);
        }
        if self.member_by_name(&member.name).is_some() {
            return Err(Refusal::NameTaken(member.name.clone()));
        }
        if let Some(left) = self.token_uses.get_mut(token) {
            // A token that is used up stays until it ends, for a node that asks again.
            *left -= 1;
        }
        let id = NodeId(index);
        let status = MemberStatus::Joining;
        self.members.insert(id, Member { id, status, banned: false, ..member.clone() });
        if member.staged {
            // The change is staged in the same entry: otherwise the node would join without a plan between two
            // entries.
            self.staged.push(Change::Join { node: id });
            self.stage_version = index;
        }
        Ok(Outcome::Admitted(id))
    }
}

/// Check the life and the number of uses of a token.
pub fn check_limits(life_ms: u64, uses: u32) -> Result<(), Refusal> {
    if life_ms > MAX_TOKEN_MS {
        return Err(Refusal::BadSetting("a join token is valid for 24 hours at most".into()));
    }
    if !(1..=MAX_TOKEN_USES).contains(&uses) {
        return Err(Refusal::BadSetting(format!(
            "a join token admits 1 to {MAX_TOKEN_USES} nodes, not {uses}"
        )));
    }
    Ok(())
}

impl Command {
    /// Replace the proposer's clock by that of the leader: tokens begin and end by one clock, whichever member is
    /// asked. A token keeps its length of life.
    pub fn by_clock(mut self, clock_ms: u64) -> Self {
        match &mut self {
            Self::IssueToken { now_ms, expires_ms, .. } => {
                *expires_ms = clock_ms.saturating_add(expires_ms.saturating_sub(*now_ms));
                *now_ms = clock_ms;
            }
            Self::Admit { now_ms, .. } => *now_ms = clock_ms,
            _ => {}
        }
        self
    }
}
