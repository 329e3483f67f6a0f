//! The node's identity at a start: read from the directory, founded, or received by a join.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{ClusterId, NodeId};
use annulus_core::state::{Command, Lineage, Member, MemberStatus};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{NodeConfig, StartError, open_unlocked, while_locked};
use annulus_cluster::{Cluster, View, seed};
use annulus_data_dir::{
    AdminToml, AuthorityKey, Credentials, DataDir, Founding, Identity, JoinIntent, LAYOUT_VERSION, new_uid,
};
use annulus_transport::Transport;
use annulus_transport::identity::{Authority, NodeKey, key_digest};

/// Replicas per partition in the ring table, if there are enough nodes (R4).
const RING_WIDTH: u8 = 3;

/// Longest wait for a voter that signs an operator's certificate, and the pause between two attempts.
pub(super) const SIGNING: Duration = Duration::from_secs(3);
const SIGNING_PAUSE: Duration = Duration::from_secs(2);

/// The first state level whose members have keys.
const KEYS_FROM: u32 = 6;

/// Complete a join that was answered: replace the node's cluster by the one in the answer. The intent is
/// removed last, so that after a crash the next start repeats all steps.
pub(super) async fn finish_join(data: &DataDir) -> Result<(), StartError> {
    let Some(JoinIntent::Admitted(admitted)) = data.join_intent()? else { return Ok(()) };
    let state = &admitted.state;
    let Some(member) = state.members.get(&admitted.node) else { return Ok(data.clear_join_intent()?) };
    while_locked(|| std::future::ready(data.wipe_database())).await?;
    // The key of the authority of the node's own cluster.
    data.authority_file().remove()?;
    let database = open_unlocked(data).await?;
    seed(&database, state).await.map_err(annulus_cluster::ClusterError::from)?;
    drop(database);
    data.clear_founding()?;
    data.write_credentials(&admitted.credentials())?;
    data.write_identity(&Identity {
        layout: LAYOUT_VERSION,
        name: member.name.clone(),
        cluster: state.cluster,
        uid: member.uid,
        node: admitted.node,
        lineage: state.lineage,
    })?;
    data.clear_join_intent()?;
    Ok(())
}

/// Read the identity from the data directory; found a new cluster in an empty one.
pub(super) fn read_or_found(data: &DataDir, config: &NodeConfig) -> Result<Identity, StartError> {
    if let Some(identity) = data.identity(&config.name)? {
        return Ok(identity);
    }
    let identity = Identity {
        layout: LAYOUT_VERSION,
        name: config.name.clone(),
        cluster: ClusterId(annulus_ground::random()),
        uid: new_uid(),
        node: NodeId(0),
        lineage: Lineage::default(),
    };
    let authority = Authority::create(identity.cluster)?;
    let tls = authority.sign_node(identity.uid)?;
    data.write_credentials(&Credentials {
        certificate: tls.cert_pem,
        key: tls.key_pem,
        authorities: vec![authority.cert_pem.clone()],
    })?;
    data.write_founding(&Founding { authority: authority.cert_pem, authority_key: authority.key_pem })?;
    data.write_identity(&identity)?;
    Ok(identity)
}

/// Return the first log entry of a cluster that is founded here.
pub(super) fn found_command(
    data: &DataDir,
    identity: &Identity,
    config: &NodeConfig,
    address: SocketAddr,
) -> Result<Option<Command>, StartError> {
    let Some(Founding { authority, mut authority_key }) = data.founding()? else { return Ok(None) };
    let level = config.speaks.levels.newest;
    let mut key = None;
    // Older builds cannot read the key of a member, and expect that of the authority in the state.
    if level >= KEYS_FROM {
        key = Some(key_digest(&NodeKey::from_pem(&data.credentials()?.key)?.public_key));
        let in_file =
            AuthorityKey { certificate: authority.clone(), key: std::mem::take(&mut authority_key) };
        data.authority_file().write(&in_file)?;
    }
    Ok(Some(Command::Found {
        cluster: identity.cluster,
        ring_size: config.founding_ring_size(),
        width: RING_WIDTH,
        founder: Member {
            id: identity.node,
            uid: identity.uid,
            name: identity.name.clone(),
            listen: address.to_string(),
            http: config.http.clone(),
            zone: config.zone.clone(),
            weight: config.weight.unwrap_or(1),
            status: MemberStatus::Member,
            staged: false,
            banned: false,
            key,
        },
        authority,
        authority_key,
        level,
    }))
}

/// Keep `admin.toml` up to date: the cluster, the address, and an operator's certificate. Return false if the
/// certificate is missing and nobody can sign one in time.
pub(super) async fn write_admin(
    data: &DataDir,
    of: &Cluster,
    address: SocketAddr,
    deadline: Instant,
) -> Result<bool, StartError> {
    let view = of.view();
    let cluster = view.state.cluster.to_string();
    // An unreadable file is replaced like a missing one.
    let present = data.admin().ok().flatten().filter(|admin| admin.cluster == cluster);
    let (certificate, key) = match &present {
        Some(admin) => (admin.certificate.clone(), admin.key.clone()),
        None => {
            let key = NodeKey::generate()?;
            match of.sign_operator(&key.public_key, deadline).await {
                Ok(certificate) => (certificate, key.key_pem),
                Err(error) => {
                    tracing::debug!(%error, "admin.toml is not written yet");
                    return Ok(false);
                }
            }
        }
    };
    let authorities = view.state.authorities.clone();
    let wanted = AdminToml { address: address.to_string(), cluster, authorities, certificate, key };
    if present.as_ref() != Some(&wanted) {
        data.write_admin(&wanted)?;
    }
    Ok(true)
}

/// Write `admin.toml` once a voter can sign the operator's certificate.
pub(super) async fn write_admin_later(data: Arc<DataDir>, of: Cluster, address: SocketAddr) {
    loop {
        sleep(SIGNING_PAUSE).await;
        match write_admin(&data, &of, address, Instant::now() + SIGNING).await {
            Ok(false) => tracing::warn!("no voter can sign the operator's certificate for admin.toml yet"),
            Ok(true) => return,
            Err(error) => return tracing::error!(%error, "admin.toml cannot be written"),
        }
    }
}

/// Trust the authorities that the cluster agreed on, now and after a restart (R20).
pub(super) async fn keep_authorities(
    data: Arc<DataDir>,
    mut views: watch::Receiver<Arc<View>>,
    transport: Transport,
) {
    let mut believed = match data.credentials() {
        Ok(credentials) => credentials.authorities,
        Err(error) => {
            tracing::error!(%error, "the authorities are no longer kept up to date");
            return;
        }
    };
    loop {
        let wanted = views.borrow_and_update().state.authorities.clone();
        if !same_pem(&wanted, &believed) && !wanted.is_empty() {
            match transport.set_authorities(wanted.clone()) {
                Ok(()) => {
                    if let Err(error) = data.write_authorities(&wanted) {
                        tracing::error!(%error, "the new authorities are not on disk");
                    }
                }
                Err(error) => tracing::error!(%error, "the cluster's new authorities cannot be used"),
            }
            believed = wanted;
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Report the node's lineage to peers, and store it for the next start (R19).
pub(super) async fn keep_lineage(
    data: Arc<DataDir>,
    mut identity: Identity,
    mut views: watch::Receiver<Arc<View>>,
    transport: Transport,
) {
    loop {
        let lineage = views.borrow_and_update().state.lineage;
        if lineage != identity.lineage {
            identity.lineage = lineage;
            transport.set_lineage(lineage);
            if let Err(error) = data.write_identity(&identity) {
                // The copy of the ring has the lineage too. Only the first hellos after a restart lack it.
                tracing::error!(%error, "the new lineage is not in IDENTITY");
            }
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Refuse nodes that do not support the level that the cluster agreed on.
pub(super) async fn keep_level(mut views: watch::Receiver<Arc<View>>, transport: Transport) {
    let mut told = None;
    loop {
        let level = views.borrow_and_update().state.level;
        if told.replace(level) != Some(level) {
            transport.set_level(level);
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

fn same_pem(a: &[String], b: &[String]) -> bool {
    a.iter().map(|pem| pem.trim()).eq(b.iter().map(|pem| pem.trim()))
}
