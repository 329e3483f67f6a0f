//! What must be refused, as an operator sees it: exit code, message, and nothing changed.

use annulus_tests::harness::{Cluster, Ran, annulus, until};

use super::common::{done, members, names, present, refused, token};

fn join(cluster: &Cluster, joining: usize, listen: &str, token: &str) -> Ran {
    cluster[joining].json(&["join", listen, "--token", token, "--timeout", "20s"])
}

#[test]
fn what_must_not_be_done_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::apart(3);
    let larger = cluster.add(&["--ring-size", "128"]);
    let listen: Vec<String> = cluster.nodes().iter().map(|node| node.listen.clone()).collect();
    let before: Vec<_> =
        (0..4).map(|node| cluster[node].json(&["status"]).json()["cluster"].clone()).collect();

    // The last one cannot leave, and who is no member can neither leave nor be removed.
    refused(&cluster[0].json(&["leave"]), "the last member cannot leave");
    refused(&cluster[0].json(&["remove", &cluster[0].name]), "is up");
    refused(&cluster[0].json(&["remove", "nobody@127.0.0.1"]), "nobody@127.0.0.1");
    refused(&cluster[0].json(&["leave", "nobody@127.0.0.1"]), "nobody@127.0.0.1");

    // To itself; to another cluster than the token's; with a token that is over, or none.
    let good = token(&cluster[0]);
    refused(&join(&cluster, 0, &listen[0], &token(&cluster[1])), "this node itself");
    refused(&join(&cluster, 1, &listen[2], &good), "");
    let short =
        done(&cluster[0].json(&["token", "--ttl", "1ms"])).json()["token"].as_str().unwrap().to_owned();
    until("the token is over", || {
        let ran = join(&cluster, 1, &listen[0], &short);
        assert_ne!(ran.code, 0, "{ran:?}");
        ran.stdout.contains("not valid").then(|| refused(&ran, "annulus token"))
    });
    refused(&join(&cluster, 1, &listen[0], "rubbish"), "token");
    // Founded with a ring of another size, on purpose.
    refused(&join(&cluster, larger, &listen[0], &good), "--ring-size");
    let after: Vec<_> =
        (0..4).map(|node| cluster[node].json(&["status"]).json()["cluster"].clone()).collect();
    assert_eq!(after, before, "everybody is where he was");
    assert_eq!(present(&cluster[0]), names(&cluster, &[0]));

    // Twice; and to a third cluster, while in one.
    done(&join(&cluster, 1, &listen[0], &good));
    refused(&join(&cluster, 1, &listen[0], &token(&cluster[0])), "member of that cluster already");
    refused(&join(&cluster, 1, &listen[2], &token(&cluster[2])), "must leave that first");
    // Who has modules says what he gives up.
    cluster.deploy("guests/kv");
    let taken = done(&cluster[2].json(&["token"])).json()["token"].as_str().unwrap().to_owned();
    refused(&join(&cluster, 0, &listen[2], &taken), "");
    assert_eq!(members(&cluster[0]).len(), 2);
    // Nobody is there to be asked: another exit code.
    let nowhere = annulus(&["--data", cluster.path().join("none").to_str().unwrap(), "members"]);
    assert_eq!(nowhere.code, 3, "{nowhere:?}");
}
