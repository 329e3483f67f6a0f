//! Joining a cluster, both ends (R18).
//!
//! The joining node shows the token's secret to any member, over a connection that it trusts because the
//! token names the cluster's authority. The member proposes the admission and replies with the node's id, a
//! certificate for the key that the node generated, and the committed state. The node stores the reply
//! durably before it leaves its single-node cluster. From then on, a crash only delays the join. Repeating a
//! join from the same data directory returns the same id.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{Command, Member, MemberStatus, Outcome, Refusal, check_limits};
use annulus_core::version::{Range, Speaks};
use annulus_core::wording::one_line;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_bytes::ByteBuf;
use tokio::time::{Instant, timeout_at};

use super::authority::{Authorities, SigningError};
use super::fetch::StateFetcher;
use super::messages::{JOIN_FRAME, JOIN_LIMIT, JoinAnswer, JoinReply, JoinRequest, Subject};
use super::propose::{ProposeError, Proposer};
use super::token::{Token, TokenError, digest_of, now_ms};
use super::view::Views;
use annulus_core::codec::{self, CodecError};
use annulus_data_dir::Admitted;
use annulus_transport::client::Client;
use annulus_transport::identity::{IdentityError, NodeKey, TlsIdentity, check_public_key, key_digest};
use annulus_transport::{BulkError, BulkStream, ConnectError, Net, kind};

/// Longest time for which a member tries to have a node admitted.
const ADMISSION: Duration = Duration::from_secs(5);

/// Longest time to send the reply.
const SENDING: Duration = Duration::from_secs(10);

/// A node that asks to join.
pub struct Candidate {
    /// Id of its data directory.
    pub uid: NodeUid,
    /// `name@host`.
    pub name: String,
    /// Address for its peers.
    pub listen: SocketAddr,
    /// Address reserved for HTTP.
    pub http: String,
    /// Failure domain.
    pub zone: Option<String>,
    /// Share of the ring, relative to other nodes.
    pub weight: u32,
    /// Ring size that it was started with. It does not join a ring of another size.
    pub ring_size: Option<RingSize>,
    /// Wait for a committed plan before taking partitions.
    pub staged: bool,
    /// Versions that its build speaks.
    pub speaks: Speaks,
    /// The key of its data directory. The cluster binds the uid to it, so that only this directory can repeat the
    /// join.
    pub key: NodeKey,
}

/// The reason for which a node did not join. The node is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is not a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The node's own cluster has other members.
    #[error("this node is in a cluster with {0}; it must leave that first")]
    InCluster(String),
    /// The node's own cluster has modules, and with them data, that a join would discard.
    #[error("this node has modules ({0}); joining would discard them and their data: say --discard")]
    HasModules(String),
    /// The token is for the node's own cluster.
    #[error("this node is a member of that cluster already")]
    AlreadyMember,
    /// The address is the node's own.
    #[error("{0} is this node itself")]
    Itself(SocketAddr),
    /// A change of the node's cluster is in progress, and its outcome is not known yet.
    #[error("this node's own cluster is being changed; try again in a moment")]
    Busy,
    /// Another join is in progress.
    #[error("this node is joining already")]
    UnderWay,
    /// The member could not be reached, or is not in the token's cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The member is in another cluster than the token's.
    #[error("{0} belongs to another cluster than the token")]
    OtherCluster(SocketAddr),
    /// The cluster refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The cluster cannot decide at the moment.
    #[error("the cluster cannot admit a node at the moment: {0}")]
    Unavailable(String),
    /// The outcome is unknown. The cluster may have admitted the node; repeating the join continues from there.
    #[error("no clear answer ({0}): the cluster may have admitted this node; run join again to continue")]
    Unknown(String),
    /// The reply cannot be decoded.
    #[error("unreadable answer: {0}")]
    Codec(#[from] CodecError),
    /// No key could be generated.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The join cannot be stored in the data directory.
    #[error(transparent)]
    DataDir(#[from] annulus_data_dir::DataDirError),
}

impl JoinError {
    /// Return true if the cluster or the node itself has refused, so that trying again is useless.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Connect(error) => {
                !matches!(error, ConnectError::Timeout(_) | ConnectError::Unreachable { .. })
            }
            Self::Unavailable(_) | Self::Unknown(_) | Self::Busy => false,
            _ => true,
        }
    }
}

/// Ask a member to admit a node. Return the credential of its operator, too, if the member has sent one.
pub fn ask_to_join<'a>(
    net: &'a Net,
    address: SocketAddr,
    token: &'a Token,
    candidate: &'a Candidate,
    deadline: Instant,
) -> BoxFuture<'a, Result<(Admitted, Option<TlsIdentity>), JoinError>> {
    Box::pin(async move {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let client = Client::connect_pinned_on(net, address, token.authority, timeout).await?;
        if client.cluster() != token.cluster {
            return Err(JoinError::OtherCluster(address));
        }
        if client.node() == candidate.uid {
            return Err(JoinError::Itself(address));
        }
        let key = &candidate.key;
        let operator = NodeKey::generate()?;
        let request = JoinRequest {
            cluster: token.cluster,
            member: Member {
                id: NodeId(0),
                uid: candidate.uid,
                name: candidate.name.clone(),
                listen: candidate.listen.to_string(),
                http: candidate.http.clone(),
                zone: candidate.zone.clone(),
                weight: candidate.weight,
                status: MemberStatus::Joining,
                staged: candidate.staged,
                banned: false,
                key: None,
            },
            public_key: key.public_key.clone(),
            secret: token.secret().to_vec(),
            ring_size: candidate.ring_size,
            speaks: candidate.speaks,
            operator_key: Some(ByteBuf::from(operator.public_key.clone())),
        };
        let header = codec::encode(&request)?;
        let unknown = |error: BulkError| JoinError::Unknown(error.to_string());
        let stream = client.open_bulk(kind::BULK_JOIN, header.into()).await.map_err(unknown)?;
        let answer = timeout_at(deadline, receive(stream))
            .await
            .map_err(|_| JoinError::Unknown("the deadline came".into()))?;
        client.close().await;
        match answer? {
            JoinReply::Admitted(answer) if answer.state.check_sound().is_err() => {
                Err(JoinError::Unknown("the member's state breaks the rules of a state".into()))
            }
            JoinReply::Admitted(answer) => {
                let operator = answer.operator.map(|certificate| operator.with_certificate(certificate));
                let admitted = Admitted {
                    node: answer.node,
                    certificate: answer.certificate,
                    key: key.key_pem.clone(),
                    state: answer.state,
                };
                Ok((admitted, operator))
            }
            JoinReply::Refused(refusal) => Err(refusal.into()),
            JoinReply::Unavailable(why) => Err(JoinError::Unavailable(why)),
            JoinReply::Unknown => Err(JoinError::Unknown("the member does not know the outcome".into())),
        }
    })
}

async fn receive(mut stream: BulkStream) -> Result<JoinReply, JoinError> {
    let unknown = |why: String| JoinError::Unknown(why);
    let mut bytes = Vec::new();
    while let Some(frame) = stream.recv.frame().await.map_err(|error| unknown(error.to_string()))? {
        if bytes.len() + frame.len() > JOIN_LIMIT {
            return Err(unknown("the answer is too large".into()));
        }
        bytes.extend_from_slice(&frame);
    }
    if bytes.is_empty() {
        return Err(unknown("the member gave no answer".into()));
    }
    Ok(codec::decode(&bytes)?)
}

/// The reason for which a joining node got no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeJoinError {
    #[error(transparent)]
    Request(#[from] CodecError),
    #[error(transparent)]
    Stream(#[from] BulkError),
    #[error("sending the answer took too long")]
    Timeout,
}

/// Send a reply to a joining node.
pub(super) async fn answer_join(stream: BulkStream, reply: &JoinReply) -> Result<(), ServeJoinError> {
    let reply = codec::encode(reply)?;
    let send = async {
        let mut send = stream.send;
        for part in reply.chunks(JOIN_FRAME) {
            send.frame(Bytes::copy_from_slice(part)).await?;
        }
        send.finish().await
    };
    timeout_at(Instant::now() + SENDING, send).await.map_err(|_| ServeJoinError::Timeout)??;
    Ok(())
}

/// The reason for which there is no token. No token was issued; if the outcome is unknown, one may exist that
/// nobody has.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The cluster did not agree.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The authority's certificate is damaged.
    #[error(transparent)]
    Authority(#[from] IdentityError),
}

/// A token, and the number of nodes that it admits; `None` is any number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token.
    pub token: Token,
    /// The number of nodes.
    pub uses: Option<u32>,
}

/// The member's side of joins. It issues tokens and admits nodes.
pub(super) struct Admission {
    views: Arc<Views>,
    proposer: Arc<Proposer>,
    fetcher: Arc<StateFetcher>,
    authorities: Arc<Authorities>,
}

impl Admission {
    pub(super) fn new(
        views: Arc<Views>,
        proposer: Arc<Proposer>,
        fetcher: Arc<StateFetcher>,
        authorities: Arc<Authorities>,
    ) -> Self {
        Self { views, proposer, fetcher, authorities }
    }

    /// Issue a token that lets `uses` nodes join within `lifetime`. Without `uses` it is one node or, in a cluster
    /// whose level has no count, any number.
    pub(super) async fn issue_token(
        &self,
        lifetime: Duration,
        uses: Option<u32>,
        deadline: Instant,
    ) -> Result<IssuedToken, IssueError> {
        let view = self.views.load();
        let life_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        check_limits(life_ms, uses.unwrap_or(1)).map_err(ProposeError::from)?;
        let uses = uses.or(view.state.binds_keys().then_some(1));
        let token = Token::generate(view.state.cluster, view.state.authorities.last().map_or("", |pem| pem))?;
        let now_ms = now_ms();
        let expires_ms = now_ms.saturating_add(life_ms);
        let issue = Command::IssueToken { token: token.digest(), now_ms, expires_ms, uses };
        self.proposer.propose(issue, deadline).await?;
        Ok(IssuedToken { token, uses })
    }

    /// Serve the join stream of one node.
    pub(super) async fn serve_join(&self, header: &[u8], stream: BulkStream) -> Result<(), ServeJoinError> {
        let request: JoinRequest = codec::decode(header)?;
        answer_join(stream, &self.admit(request).await).await
    }

    pub(super) async fn admit(&self, request: JoinRequest) -> JoinReply {
        let deadline = Instant::now() + ADMISSION;
        let mut view = self.views.load();
        if request.cluster != view.state.cluster {
            return JoinReply::Refused(Refusal::BadToken);
        }
        let levels = request.speaks.levels;
        if let Err(refusal) = speaks_level(levels, view.state.level) {
            tracing::info!(name = %request.member.name, %refusal, "a node is not admitted");
            return JoinReply::Refused(refusal);
        }
        // These checks come before anything is signed or proposed, because anybody can ask, with any secret and any
        // uid. The leader decides whether the token has ended.
        let token = digest_of(&request.secret);
        if !view.state.tokens.contains_key(&token) {
            // The token may have been issued through another node a moment ago.
            let has_leader = self.fetcher.learn_news(deadline).await;
            view = self.views.load();
            if !view.state.tokens.contains_key(&token) {
                return match has_leader {
                    true => JoinReply::Refused(Refusal::BadToken),
                    false => JoinReply::Unavailable(ProposeError::NoLeader.to_string()),
                };
            }
        }
        if let Err(why) = check_member(&request.member) {
            return JoinReply::Refused(Refusal::BadSetting(why));
        }
        let size = view.state.ring.size;
        if let Some(other) = request.ring_size.filter(|other| *other != size) {
            let why = format!(
                "the cluster's ring has {size} partitions, and this node was started with --ring-size {other}: \
                 start it without, or with --ring-size {size}",
                size = u32::from(size),
                other = u32::from(other),
            );
            return JoinReply::Refused(Refusal::BadSetting(why));
        }
        if let Err(error) = check_public_key(&request.public_key) {
            return JoinReply::Refused(Refusal::BadSetting(error.to_string()));
        }
        let key = view.state.binds_keys().then(|| key_digest(&request.public_key));
        let member = Member { key, ..request.member };
        if let Err(refusal) = view.state.admitted_before(&member) {
            return JoinReply::Refused(refusal);
        }
        // A node that can sign is found before the admission, so that no node is admitted without a certificate.
        let (uid, name) = (member.uid, member.name.clone());
        let Some(signer) = self.authorities.signer(deadline).await else {
            return JoinReply::Unavailable(SigningError::Nobody.to_string());
        };
        let command = Command::Admit { member, token, now_ms: now_ms() };
        annulus_ground::point("admission: nothing is in the way").await;
        let (index, node) = match self.proposer.propose(command, deadline).await {
            Ok((index, Outcome::Admitted(node))) => (index, node),
            Ok(_) | Err(ProposeError::Unknown) => return JoinReply::Unknown,
            Err(ProposeError::Refused(refusal)) => return JoinReply::Refused(refusal),
            Err(
                error @ (ProposeError::NoLeader
                | ProposeError::NoQuorum
                | ProposeError::Outside
                | ProposeError::Joining(_)),
            ) => {
                return JoinReply::Unavailable(error.to_string());
            }
        };
        let Ok(view) = self.views.wait_applied(index, deadline).await else { return JoinReply::Unknown };
        // The level may have been raised between the check and the admission.
        if let Err(refusal) = speaks_level(levels, view.state.level) {
            return match self.proposer.propose(Command::Removed { node }, deadline).await {
                Ok(_) => JoinReply::Refused(refusal),
                Err(_) => JoinReply::Unknown,
            };
        }
        let subject = Subject::Node(uid);
        let signed = self.authorities.sign(signer, subject, &request.public_key, index, deadline).await;
        let certificate = match signed {
            Ok(certificate) => certificate,
            // The node is admitted, and continues when it asks again.
            Err(error) => {
                tracing::warn!(%node, %error, "the certificate of an admitted node is not signed");
                return JoinReply::Unknown;
            }
        };
        let operator = match &request.operator_key {
            // Without one, the node asks for it once it is a member.
            Some(key) => self.authorities.sign(signer, Subject::Operator, key, index, deadline).await.ok(),
            None => None,
        };
        tracing::info!(%node, %name, %uid, "admitted");
        JoinReply::Admitted(Box::new(JoinAnswer { node, certificate, state: view.state.clone(), operator }))
    }
}

/// Longest name, zone or address of a member, in bytes.
const MAX_TEXT_BYTES: usize = 255;
/// Largest weight of a member. A node with a larger one would own most of the ring.
const MAX_WEIGHT: u32 = 1000;

/// Check the description that a joining node sends. All members store and show it.
fn check_member(member: &Member) -> Result<(), String> {
    let shown = |text: &str| one_line(text, 64).into_owned();
    let Member { name, listen, http, zone, weight, .. } = member;
    if name.is_empty() || name.len() > MAX_TEXT_BYTES || !name.chars().all(|c| c.is_ascii_graphic()) {
        let name = shown(name);
        return Err(format!(
            "{name:?} is not the name of a node: 1 to {MAX_TEXT_BYTES} ASCII characters without spaces"
        ));
    }
    if listen.parse::<SocketAddr>().is_err() {
        return Err(format!("{:?} is not an address of a node", shown(listen)));
    }
    for text in [Some(http), zone.as_ref()].into_iter().flatten() {
        if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
            let text = shown(text);
            return Err(format!("{text:?} is longer than {MAX_TEXT_BYTES} bytes or has control characters"));
        }
    }
    if !(1..=MAX_WEIGHT).contains(weight) {
        return Err(format!("a node's weight is 1 to {MAX_WEIGHT}, not {weight}"));
    }
    Ok(())
}

/// Check that a node that speaks `levels` can join a cluster at `level`. The first build can decode the
/// refusal.
fn speaks_level(levels: Range, level: u32) -> Result<(), Refusal> {
    if levels.has(level) {
        return Ok(());
    }
    Err(Refusal::BadSetting(format!(
        "the cluster is at state level {level} and this node speaks {levels}: join with a build that speaks it"
    )))
}
