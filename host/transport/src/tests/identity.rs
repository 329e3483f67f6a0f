//! Certificates, and changes of the trusted authorities.

use super::super::identity::NodeKey;
use super::super::identity::{ADMIN, node_name};
use super::super::tls::names;
use super::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

fn leaf(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_certificate_carries_its_role_and_no_other() {
    let world = World::new();
    let own = uid();
    let node = leaf(&world.sign_node(own).cert_pem);
    assert!(names(&node, &node_name(own)) && names(&node, super::super::identity::ANY_NODE));
    assert!(!names(&node, &node_name(uid())) && !names(&node, ADMIN));
    let admin = leaf(&world.admin().cert_pem);
    assert!(names(&admin, ADMIN) && !names(&admin, &node_name(own)));
}

async fn a_key_made_by_the_joiner_is_signed_without_leaving_it(world: World) {
    let key = world.make(NodeKey::generate).unwrap();
    let mut config = world.config(uid());
    let chain = world.make(|| world.authority.sign_node_key(config.uid, &key.public_key)).unwrap();
    config.identity = key.with_certificate(chain);
    let (a, b) = (world.start(config), world.node());
    assert_eq!(a.call(&b.addr(), ECHO, b"hi").await.unwrap(), "hi");
    assert!(world.make(|| world.authority.sign_node_key(uid(), b"junk")).is_err());
}

async fn a_node_of_a_foreign_authority_is_refused_from_either_side(world: World) {
    let b = world.node();
    // The cluster id is the same and the authority is another one. This node trusts everyone, and no one
    // trusts it.
    let foreign = world.usurped();
    let mut config = foreign.config(uid());
    config.authorities.push(world.authority.cert_pem.clone());
    let stranger = world.start(config);
    let error = stranger.call(&b.addr(), REVERSE, b"let me in").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    let error = b.call(&stranger.addr(), REVERSE, b"").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    assert!(b.service.requests.lock().is_empty() && stranger.service.requests.lock().is_empty());
}

async fn a_node_with_another_nodes_certificate_is_refused(world: World) {
    let b = world.node();
    let mut config = world.config(uid());
    config.identity = world.sign_node(uid());
    let liar = world.start(config);
    let error = liar.call(&b.addr(), REVERSE, b"").await.unwrap_err();
    assert!(error.to_string().contains("certificate is not that of node"), "{error}");
    // An operator's certificate is not a node's either.
    let mut config = world.config(uid());
    config.identity = world.admin();
    let error = world.start(config).call(&b.addr(), REVERSE, b"").await.unwrap_err();
    assert!(error.to_string().contains("certificate is not that of node"), "{error}");
    assert!(b.service.requests.lock().is_empty());
}

async fn a_node_of_another_cluster_is_refused_with_the_reason(world: World) {
    let b = world.node();
    let mut config = world.config(uid());
    config.cluster = ClusterId(rand::random());
    let lost = world.start(config);
    for (from, to) in [(&lost, &b), (&b, &lost)] {
        let error = from.call(&to.addr(), REVERSE, b"").await.unwrap_err();
        assert!(matches!(&error, CallError::Unreachable(why) if why.contains("meets cluster")), "{error}");
    }
}

async fn a_dialler_that_reaches_another_node_refuses_it(world: World) {
    let (a, b) = (world.node(), world.node());
    let wrong = PeerAddr { uid: uid(), addr: b.addr().addr };
    let error = a.call(&wrong, REVERSE, b"").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    assert!(b.service.requests.lock().is_empty());
}

async fn authorities_are_swapped_without_a_restart(world: World) {
    let (a, b) = (world.node(), world.node());
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    let next = world.usurped();
    // Both nodes trust both authorities; then a gets its new certificate, and b stops trusting the old
    // authority.
    let both = vec![world.authority.cert_pem.clone(), next.authority.cert_pem.clone()];
    for node in [&a, &b] {
        node.transport.set_authorities(both.clone()).unwrap();
    }
    a.call(&b.addr(), ECHO, b"").await.unwrap();
    b.transport.set_identity(next.sign_node(b.uid())).unwrap();
    b.transport.set_authorities(vec![next.authority.cert_pem.clone()]).unwrap();
    within("the old certificate to be refused", async {
        while a.call(&b.addr(), REVERSE, b"").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    a.transport.set_identity(next.sign_node(a.uid())).unwrap();
    a.call_until_answered(&b.addr()).await;
    assert!(a.transport.set_authorities(vec!["junk".to_owned()]).is_err());
    a.call(&b.addr(), ECHO, b"").await.unwrap();
}

on_both_nets! {
    a_key_made_by_the_joiner_is_signed_without_leaving_it,
    a_node_of_a_foreign_authority_is_refused_from_either_side,
    a_node_with_another_nodes_certificate_is_refused,
    a_node_of_another_cluster_is_refused_with_the_reason,
    a_dialler_that_reaches_another_node_refuses_it,
    authorities_are_swapped_without_a_restart,
}
