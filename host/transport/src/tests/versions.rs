//! Nodes of different builds.

use annulus_core::version::Speaks;

use super::*;

/// Start a transport that supports only the first versions.
fn first(world: &World) -> (Transport, PeerAddr) {
    struct Deaf;
    impl Service for Deaf {
        fn request(&self, _: Request) {}
    }
    let config = world.config(uid());
    let service: Weak<dyn Service> = Weak::<Deaf>::new();
    let net = world.net(config.listen.ip());
    let (transport, _) = Transport::bind_on(&net, Speaks::FIRST, config.clone(), service).unwrap();
    let addr = PeerAddr { uid: config.uid, addr: transport.local_addr() };
    (transport, addr)
}

async fn a_peers_versions_are_known_and_a_peer_without_the_level_is_disconnected(world: World) {
    let (here, there) = (world.node(), world.node());
    let (older, older_addr) = first(&world);
    assert_eq!(here.transport.peer_speaks(older_addr.uid), None);
    here.call(&there.addr(), ECHO, b"").await.unwrap();
    here.call(&older_addr, ECHO, b"").await.unwrap();
    assert_eq!(here.transport.peer_speaks(there.uid()), Some(Speaks::THIS));
    assert_eq!(here.transport.peer_speaks(older_addr.uid), Some(Speaks::FIRST));
    // The accepting side responds on a lane before its entry has the link.
    within("the link on the other side", async {
        while older.peer_speaks(here.uid()).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(older.peer_speaks(here.uid()), Some(Speaks::THIS));

    here.transport.set_level(1);
    here.call(&older_addr, ECHO, b"").await.unwrap();
    // It does not reconnect, whichever side dials.
    here.transport.set_level(2);
    within("the end of the connection", async {
        while here.transport.is_up(older_addr.uid) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = here.call(&older_addr, ECHO, b"").await.unwrap_err();
    assert!(refused.to_string().contains("state level 2"), "{refused}");
    let refused = within("a refusal", async {
        loop {
            let asked = older.call(&here.addr(), Lane::Data, ECHO, Bytes::new(), soon()).await;
            match asked {
                Err(CallError::Unreachable(reason)) => return reason,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert!(refused.contains("level 2") && refused.contains("speaks 1"), "{refused}");

    // Once it has left, it is told so: it cannot read the entry of the log that says it.
    here.transport.set_left([older_addr.uid].into());
    within("the other reason", async {
        loop {
            let asked = older.call(&here.addr(), Lane::Data, ECHO, Bytes::new(), soon()).await;
            match asked {
                Err(CallError::Unreachable(reason)) if reason.contains("has left") => return,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    // Other peers are unaffected, and its last hello is remembered.
    here.call(&there.addr(), ECHO, b"").await.unwrap();
    assert_eq!(here.transport.peer_speaks(older_addr.uid), Some(Speaks::FIRST));
}

on_both_nets! {
    a_peers_versions_are_known_and_a_peer_without_the_level_is_disconnected,
}
