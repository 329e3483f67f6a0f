//! The state's level. Members that do not speak it hold it back, and it is raised when the last one is
//! upgraded.

use annulus_core::state::Refusal;

use super::*;

impl World {
    /// Stop a node and start it again with a build that speaks all versions.
    async fn upgrade(&mut self, number: u8) {
        let uid = member(number).uid;
        self.net.older.lock().remove(&uid);
        self.net.nodes.lock().remove(&uid);
        let at = self.nodes.iter().position(|node| node.uid() == uid).unwrap();
        let node = self.nodes.remove(at);
        let me = node.me();
        node.stop().await;
        drop(node);
        // The node's last tasks drop the database when they next run.
        let disk = format!("{number}-{}-1", number - 1);
        let path = self.dir.path().join(&disk);
        timeout(LIMIT, async {
            while open_database(&path).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        self.next_start = Start { number: 2, id: 10 + u64::from(number) };
        self.next_disk = Some(disk);
        self.start(number, me, None, None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_is_raised_when_the_last_member_speaks_it_and_until_then_those_that_do_not_are_named() {
    let net = Arc::new(Net::default());
    net.older.lock().extend([member(1).uid, member(2).uid]);
    let mut world = World::founded_in(net).await;
    world.join(2).await;
    world.join(3).await;
    let newer = || Command::Down { node: NodeId(0) };
    let refused = |error| match error {
        ProposeError::Refused(Refusal::Level { needs: 2, level: 1, behind }) => behind.join(", "),
        other => panic!("{other:?}"),
    };
    let third = world.nodes[2].clone();
    let behind = refused(third.propose(newer(), soon()).await.unwrap_err());
    assert!(behind.contains("n1@") && behind.contains("n2@") && behind.contains("speaks 1"), "{behind}");
    // An older build rejects a command that it cannot know, whoever sends it.
    let payload = annulus_core::codec::encode(&newer()).unwrap();
    assert!(world.nodes[0].answer(third.uid(), kind::PROPOSE, &payload, soon()).await.is_err());

    world.upgrade(1).await;
    world.until("one leads", |node| node.leader().is_some()).await;
    let behind = refused(third.propose(newer(), soon()).await.unwrap_err());
    assert!(!behind.contains("n1@") && behind.contains("n2@"), "{behind}");
    assert!(world.nodes.iter().all(|node| node.view().state.level == 1));

    world.upgrade(2).await;
    world.until("the level is raised", |node| node.view().state.level == annulus_core::version::LEVEL).await;
    third.propose(newer(), soon()).await.unwrap();
    assert_eq!(third.held_back_by(&third.view(), 2), Vec::<String>::new());
}
