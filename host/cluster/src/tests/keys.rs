//! The key of the authority, between nodes.

use annulus_core::codec::{decode, encode};
use annulus_data_dir::AuthorityKey;
use annulus_transport::identity::{Authority, NodeKey};

use super::messages::{AuthorityMessage, AuthorityReply, Subject};
use super::service::Unanswered;
use super::*;

async fn ask(
    node: &Cluster,
    from: NodeUid,
    message: &AuthorityMessage,
) -> Result<AuthorityReply, Unanswered> {
    let answer = node.answer(from, kind::AUTHORITY, &encode(message).unwrap(), soon()).await?;
    Ok(decode(&answer).unwrap())
}

fn is_refused(reply: &Result<AuthorityReply, Unanswered>) -> bool {
    matches!(reply, Ok(AuthorityReply::Refused(_)) | Err(Unanswered::Unknown | Unanswered::Removed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_given_to_voters_and_signs_what_the_member_table_says() {
    let authority = Authority::create(ClusterId([9; 16])).unwrap();
    let mut world = World::founded_by(authority.cert_pem.clone()).await;
    let key = AuthorityKey { certificate: authority.cert_pem.clone(), key: authority.key_pem.clone() };
    let first = world.nodes[0].clone();
    first.inner.authorities.hold(key.clone());
    world.join(2).await;
    let second = world.nodes[1].clone();
    // The second node does not vote.
    let asked = ask(&first, second.uid(), &AuthorityMessage::Give).await;
    assert!(is_refused(&asked), "{asked:?}");
    let stranger = NodeUid([99; 16]);
    for message in [AuthorityMessage::Has, AuthorityMessage::Give, AuthorityMessage::Take(key.clone())] {
        let asked = ask(&first, stranger, &message).await;
        assert!(is_refused(&asked), "{message:?}: {asked:?}");
    }
    // It can take no key that is not the authority's.
    let other = Authority::create(ClusterId([9; 16])).unwrap();
    for (certificate, key) in [
        (other.cert_pem.clone(), other.key_pem.clone()),
        (authority.cert_pem.clone(), other.key_pem.clone()),
        (authority.cert_pem.clone(), "junk".to_owned()),
    ] {
        let taken =
            ask(&second, first.uid(), &AuthorityMessage::Take(AuthorityKey { certificate, key })).await;
        assert!(is_refused(&taken), "{taken:?}");
    }
    assert!(second.authority().is_none());

    // A node's certificate is signed for the key of its admission, and for no other.
    let foreign = NodeKey::generate().unwrap().public_key;
    for subject in [Subject::Node(second.uid()), Subject::Node(first.uid()), Subject::Node(stranger)] {
        let message = AuthorityMessage::Sign { subject, public_key: foreign.clone(), index: 0 };
        let signed = ask(&first, second.uid(), &message).await;
        assert!(is_refused(&signed), "{subject:?}: {signed:?}");
    }
    let certificate = second.sign_operator(&foreign, soon()).await.unwrap();
    assert!(certificate.contains("BEGIN CERTIFICATE"));

    world.join(3).await;
    world.until("three vote", |node| node.raft_members().voters.len() == 3).await;
    for node in &world.nodes {
        assert_eq!(node.authority(), Some(authority.clone()));
    }
    assert!(matches!(ask(&first, second.uid(), &AuthorityMessage::Give).await, Ok(AuthorityReply::Key(_))));
}
