//! The private key of the cluster's authority, which signs the certificates of nodes and operators (R20).
//!
//! Each voter has the key in a file. A leader hands it to a node before it makes that node a voter, and a voter that
//! lacks it asks for it. A node that no longer votes removes it. All other nodes have their certificates signed by a
//! voter, which signs for a node what the member table says: the key with which the node was admitted.
//!
//! Below state level 6 the key is part of the state, and every node signs.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::NodeId;
use annulus_data_dir::{AuthorityFile, AuthorityKey, DataDirError};
use annulus_transport::identity::{Authority, is_key_of, key_digest};
use annulus_transport::{beat, kind};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::group::RaftGroup;
use super::messages::{AuthorityMessage, AuthorityReply, Subject};
use super::peers::Peers;
use super::view::Views;

/// Pause between two checks whether this node should have the key.
const PERIOD: Duration = Duration::from_secs(1);

/// Time after which a node that does not vote removes the key. Longer than a change of voters takes.
const KEPT: Duration = Duration::from_secs(30);

/// Longest wait for one node.
const ASK: Duration = Duration::from_secs(2);

/// The reason for which nothing was signed, or a key not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    /// No voter that has the key of the authority can be reached.
    #[error(
        "no voter with the key of the cluster's authority can be reached, so nothing can be signed at the moment"
    )]
    Nobody,
    /// The voter refuses.
    #[error("{0}")]
    Refused(String),
    /// A node does not take the key.
    #[error("node {0} does not take the key of the authority")]
    NotTaken(NodeId),
}

/// A node that can sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signer {
    Here,
    Voter(NodeId),
}

/// This node's knowledge of the authority's key.
pub(super) struct Authorities {
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    file: AuthorityFile,
    /// The contents of the file.
    held: Mutex<Option<AuthorityKey>>,
}

impl Authorities {
    /// Open the file of this node.
    pub(super) fn open(
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        peers: Peers,
        file: AuthorityFile,
    ) -> Result<Self, DataDirError> {
        let held = Mutex::new(file.read()?);
        Ok(Self { views, group, peers, file, held })
    }

    /// Return the authority with its key, if this node has the key.
    pub(super) fn authority(&self) -> Option<Authority> {
        let state = &self.views.load().state;
        let cert_pem = state.authorities.last()?.clone();
        let key_pem = match state.authority_key.is_empty() {
            false => state.authority_key.clone(),
            true => self.held.lock().as_ref().filter(|held| held.certificate == cert_pem)?.key.clone(),
        };
        Some(Authority { cluster: state.cluster, cert_pem, key_pem })
    }

    /// Return true if the key is in this node's file, so that the state no longer needs it.
    pub(super) fn is_in_file(&self) -> bool {
        let state = &self.views.load().state;
        let held = self.held.lock();
        held.as_ref().is_some_and(|held| state.authorities.last() == Some(&held.certificate))
    }

    /// Return true if nodes other than voters need not have the key.
    fn keeps_key_apart(&self) -> bool {
        self.views.load().state.authority_key.is_empty()
    }

    #[cfg(test)]
    pub(super) fn hold(&self, key: AuthorityKey) {
        self.store(key).expect("the disk of a test");
    }

    fn store(&self, key: AuthorityKey) -> Result<(), DataDirError> {
        self.file.write(&key)?;
        *self.held.lock() = Some(key);
        Ok(())
    }

    /// Return a node that can sign: this one, or a voter that has the key.
    pub(super) async fn signer(&self, deadline: Instant) -> Option<Signer> {
        if self.authority().is_some() {
            return Some(Signer::Here);
        }
        self.voter_with_key(deadline).await.map(Signer::Voter)
    }

    /// Return another voter that has the key.
    async fn voter_with_key(&self, deadline: Instant) -> Option<NodeId> {
        for voter in self.voters() {
            let asked = self.ask(voter, &AuthorityMessage::Has, deadline).await;
            if matches!(asked, Some(AuthorityReply::Has(true))) {
                return Some(voter);
            }
        }
        None
    }

    /// Have a public key signed for a subject. `index` is an entry after which the member table has the subject.
    pub(super) async fn sign(
        &self,
        by: Signer,
        subject: Subject,
        public_key: &[u8],
        index: u64,
        deadline: Instant,
    ) -> Result<String, SigningError> {
        let voter = match by {
            Signer::Here => return self.sign_here(subject, public_key).map_err(SigningError::Refused),
            Signer::Voter(voter) => voter,
        };
        let message = AuthorityMessage::Sign { subject, public_key: public_key.to_vec(), index };
        match self.ask(voter, &message, deadline).await {
            Some(AuthorityReply::Signed(certificate)) => Ok(certificate),
            Some(AuthorityReply::Refused(why)) => Err(SigningError::Refused(why)),
            _ => Err(SigningError::Nobody),
        }
    }

    fn sign_here(&self, subject: Subject, public_key: &[u8]) -> Result<String, String> {
        let authority = self.authority().ok_or("this node does not have the key of the authority")?;
        let signed = match subject {
            Subject::Node(uid) => {
                let view = self.views.load();
                let member = view.state.member_by_uid(uid).filter(|member| member.is_live());
                let member = member.ok_or_else(|| format!("no member has the uid {uid}"))?;
                // A member that was admitted below level 6 has no key in the table, and has its certificate.
                if view.state.binds_keys() && member.key != Some(key_digest(public_key)) {
                    return Err(format!("{} was admitted with another key", member.name));
                }
                authority.sign_node_key(uid, public_key)
            }
            Subject::Operator => authority.sign_admin_key(public_key),
        };
        signed.map_err(|error| error.to_string())
    }

    /// Reply to a member.
    pub(super) async fn answer(
        &self,
        from: NodeId,
        message: AuthorityMessage,
        deadline: Instant,
    ) -> AuthorityReply {
        let refuse = |why: &str| AuthorityReply::Refused(why.to_owned());
        match message {
            AuthorityMessage::Has => AuthorityReply::Has(self.authority().is_some()),
            AuthorityMessage::Sign { subject, public_key, index } => {
                if self.views.wait_applied(index, deadline).await.is_err() {
                    return refuse("the voter has not applied the admission in time");
                }
                let signed = self.sign_here(subject, &public_key);
                tracing::info!(%from, ?subject, is_signed = signed.is_ok(), "a certificate is asked for");
                signed.map_or_else(AuthorityReply::Refused, AuthorityReply::Signed)
            }
            AuthorityMessage::Give => {
                if !self.voters().contains(&from) {
                    tracing::warn!(%from, "a node that does not vote asks for the key of the authority");
                    return refuse("only a voter is given the key of the authority");
                }
                match self.authority() {
                    Some(Authority { cert_pem: certificate, key_pem: key, .. }) => {
                        tracing::info!(%from, "a voter is given the key of the authority");
                        AuthorityReply::Key(AuthorityKey { certificate, key })
                    }
                    None => refuse("this node does not have the key of the authority"),
                }
            }
            AuthorityMessage::Take(key) => {
                if !self.voters().contains(&from) {
                    return refuse("only a voter hands the key of the authority over");
                }
                self.take(key).map_or_else(AuthorityReply::Refused, |()| AuthorityReply::Done)
            }
        }
    }

    /// Store a key that another node has sent, if it is that of the authority.
    fn take(&self, key: AuthorityKey) -> Result<(), String> {
        let view = self.views.load();
        if view.state.authorities.last() != Some(&key.certificate) {
            return Err("this is not the authority of the cluster".to_owned());
        }
        if !is_key_of(&key.certificate, &key.key) {
            return Err("this is not the key of the authority".to_owned());
        }
        self.store(key).map_err(|error| error.to_string())
    }

    /// Give the key to a node that is about to become a voter, and return once it has stored it. If this node does not
    /// have the key, there is none to be given.
    pub(super) async fn hand_over(&self, node: NodeId) -> Result<(), SigningError> {
        if !self.keeps_key_apart() {
            return Ok(());
        }
        let Some(Authority { cert_pem: certificate, key_pem: key, .. }) = self.authority() else {
            return Ok(());
        };
        let message = AuthorityMessage::Take(AuthorityKey { certificate, key });
        match self.ask(node, &message, Instant::now() + ASK).await {
            Some(AuthorityReply::Done) => {
                tracing::info!(%node, "has the key of the authority from now on");
                Ok(())
            }
            Some(AuthorityReply::Refused(why)) => Err(SigningError::Refused(why)),
            _ => Err(SigningError::NotTaken(node)),
        }
    }

    /// Return the other voters, the leader first.
    fn voters(&self) -> Vec<NodeId> {
        let me = self.views.load().me;
        let leader = self.group.leader();
        let mut voters = self.group.members().voters;
        voters.sort_by_key(|voter| (Some(*voter) != leader, *voter));
        voters.retain(|voter| *voter != me);
        voters
    }

    fn votes(&self) -> bool {
        self.group.members().voters.contains(&self.views.load().me)
    }

    async fn ask(
        &self,
        node: NodeId,
        message: &AuthorityMessage,
        deadline: Instant,
    ) -> Option<AuthorityReply> {
        let payload = codec::encode(message).ok()?;
        let deadline = deadline.min(Instant::now() + ASK);
        let answer = self.peers.call(node, kind::AUTHORITY, payload.into(), deadline).await.ok()?;
        codec::decode(&answer).ok()
    }

    /// Keep the key where it belongs, until the control plane stops.
    pub(super) async fn run(self: Arc<Self>) {
        let mut voted = Instant::now();
        loop {
            let votes = self.votes();
            if votes {
                voted = Instant::now();
            }
            if votes && !self.is_in_file() {
                self.obtain().await;
            } else if !votes && voted.elapsed() > KEPT && self.held.lock().is_some() {
                self.give_up().await;
            }
            beat::sleep(PERIOD).await;
        }
    }

    /// Obtain the key for this voter: from the state of a lower level, or from another node.
    async fn obtain(&self) {
        let here = self
            .authority()
            .map(|authority| AuthorityKey { certificate: authority.cert_pem, key: authority.key_pem });
        let Some(key) = here else { return self.ask_for_key().await };
        if let Err(error) = self.store(key) {
            tracing::error!(%error, "the key of the authority cannot be stored");
        }
    }

    async fn ask_for_key(&self) {
        let view = self.views.load();
        let mut asked = self.voters();
        // After a recovery, a node that voted before may have it.
        asked.extend(view.state.live_members().map(|member| member.id).filter(|id| *id != view.me));
        let mut seen = std::collections::BTreeSet::new();
        asked.retain(|node| seen.insert(*node));
        for node in asked {
            let Some(AuthorityReply::Key(key)) =
                self.ask(node, &AuthorityMessage::Give, Instant::now() + ASK).await
            else {
                continue;
            };
            match self.take(key) {
                Ok(()) => return tracing::info!(from = %node, "has the key of the authority"),
                Err(why) => tracing::warn!(from = %node, why, "a key is not taken"),
            }
        }
    }

    /// Remove the key from this node, which no longer votes, once a voter says that it has it.
    async fn give_up(&self) {
        let Some(voter) = self.voter_with_key(Instant::now() + ASK).await else { return };
        match self.file.remove() {
            Ok(()) => {
                *self.held.lock() = None;
                tracing::info!(%voter, "no longer votes, and has removed the key of the authority");
            }
            Err(error) => tracing::error!(%error, "the key of the authority cannot be removed"),
        }
    }
}
