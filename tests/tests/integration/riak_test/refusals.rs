//! Invalid changes are refused: exit code, message, and no change.

use annulus_tests::harness::{Cluster, Ran, annulus, until};

use super::common::{done, members, names, present, refused, token};

fn join(cluster: &Cluster, joining: usize, listen: &str, token: &str) -> Ran {
    cluster[joining].json(&["join", listen, "--token", token, "--timeout", "20s"])
}

#[test]
fn invalid_changes_are_refused_and_change_nothing() {
    let mut cluster = Cluster::apart(3);
    let larger = cluster.add(&["--ring-size", "128"]);
    let listen: Vec<String> = cluster.nodes().iter().map(|node| node.listen.clone()).collect();
    let before: Vec<_> =
        (0..4).map(|node| cluster[node].json(&["status"]).json()["cluster"].clone()).collect();

    // The last member cannot leave, and a node that is not a member can neither leave nor be removed.
    refused(&cluster[0].json(&["leave"]), "the last member cannot leave");
    refused(&cluster[0].json(&["remove", &cluster[0].name]), "is up");
    refused(&cluster[0].json(&["remove", "nobody@127.0.0.1"]), "nobody@127.0.0.1");
    refused(&cluster[0].json(&["leave", "nobody@127.0.0.1"]), "nobody@127.0.0.1");

    // A node cannot join itself, or another cluster than the token's, or with an expired or invalid token.
    let good = token(&cluster[0]);
    refused(&join(&cluster, 0, &listen[0], &token(&cluster[1])), "this node itself");
    refused(&join(&cluster, 1, &listen[2], &good), "");
    let short =
        done(&cluster[0].json(&["token", "--ttl", "1ms"])).json()["token"].as_str().unwrap().to_owned();
    until("the token has expired", || {
        let ran = join(&cluster, 1, &listen[0], &short);
        assert_ne!(ran.code, 0, "{ran:?}");
        ran.stdout.contains("not valid").then(|| refused(&ran, "annulus token"))
    });
    refused(&join(&cluster, 1, &listen[0], "rubbish"), "token");
    // A node cannot join a cluster if it was started with another ring size.
    refused(&join(&cluster, larger, &listen[0], &good), "--ring-size");
    let after: Vec<_> =
        (0..4).map(|node| cluster[node].json(&["status"]).json()["cluster"].clone()).collect();
    assert_eq!(after, before, "every node is in the same cluster as before");
    assert_eq!(present(&cluster[0]), names(&cluster, &[0]));

    // A member cannot join the same cluster again, or another cluster.
    done(&join(&cluster, 1, &listen[0], &good));
    refused(&join(&cluster, 1, &listen[0], &token(&cluster[0])), "member of that cluster already");
    refused(&join(&cluster, 1, &listen[2], &token(&cluster[2])), "must leave that first");
    // A node that has modules cannot join without `--discard`.
    cluster.deploy("guests/kv");
    let taken = done(&cluster[2].json(&["token"])).json()["token"].as_str().unwrap().to_owned();
    refused(&join(&cluster, 0, &listen[2], &taken), "");
    assert_eq!(members(&cluster[0]).len(), 2);
    // If no node is reachable, the exit code is another one.
    let nowhere = annulus(&["--data", cluster.path().join("none").to_str().unwrap(), "members"]);
    assert_eq!(nowhere.code, 3, "{nowhere:?}");
}
