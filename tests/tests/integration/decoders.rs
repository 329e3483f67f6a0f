//! The list of everything that decodes bytes from outside the process: from peers, the disk, guests and the command line.
//!
//! Each file is named with the file of the test that gives its decoders arbitrary and damaged bytes. A file that decodes
//! and is not named here fails the test below. `ANNULUS_JUNK=5000000` runs the tests that use `annulus_core::junk` for
//! long.

use std::collections::BTreeMap;
use std::path::Path;

use annulus_tests::guests::root;

/// Code that decodes.
const MARKS: [&str; 12] = [
    "codec::decode",
    "decode(payload)",
    "ciborium::from_reader",
    "toml::from_str",
    "serde_json::from_str",
    "from_cbor(",
    "protocol::decode",
    "impl FromStr for",
    "fn decode(",
    "fn parse(text",
    "from_pem_slice",
    "wasmparser::",
];

/// Every file that decodes, and the file with the test of its decoders. Files whose decoders return only messages of another
/// file are tested there.
const DECODERS: &[(&str, &str)] = &[
    ("admin/src/protocol.rs", "admin/src/protocol.rs"),
    ("admin/src/service/look.rs", "core/tests/decoders.rs"),
    ("admin/src/service/settings.rs", "admin/src/service/settings.rs"),
    ("cluster/src/address_exchange.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/announce.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/authority.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/claimant.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/fetch.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/join.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/lineage.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/network.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/propose.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/recover.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/seen_starts.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/service.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/start_check.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/storage/mark.rs", "cluster/src/storage/mark.rs"),
    ("cluster/src/storage/mod.rs", "cluster/src/tests/decoders.rs"),
    ("cluster/src/storage/state_machine.rs", "core/tests/decoders.rs"),
    ("cluster/src/token.rs", "cluster/src/tests/decoders.rs"),
    ("core/src/address.rs", "core/tests/decoders.rs"),
    ("core/src/codec.rs", "core/tests/decoders.rs"),
    ("core/src/description.rs", "core/tests/decoders.rs"),
    ("core/src/ids.rs", "core/tests/decoders.rs"),
    ("core/src/liveness/packet.rs", "core/src/liveness/packet.rs"),
    ("core/src/mutants.rs", "core/tests/decoders.rs"),
    ("core/src/request.rs", "core/tests/decoders.rs"),
    ("core/src/wire.rs", "core/tests/decoders.rs"),
    ("core/src/wire/replica.rs", "core/src/wire/replica.rs"),
    ("data-dir/src/admin_toml.rs", "data-dir/src/tests.rs"),
    ("data-dir/src/identity.rs", "data-dir/src/tests.rs"),
    ("data-dir/src/join_intent.rs", "data-dir/src/tests.rs"),
    ("data-dir/src/sealed.rs", "data-dir/src/tests.rs"),
    ("handoff/src/link.rs", "core/tests/decoders.rs"),
    ("handoff/src/rows.rs", "handoff/src/sizes.rs"),
    ("handoff/src/sizes.rs", "handoff/src/sizes.rs"),
    ("modules/src/capabilities.rs", "modules/src/capabilities.rs"),
    ("modules/src/deploy/running.rs", "modules/src/messages.rs"),
    ("modules/src/formats.rs", "core/tests/decoders.rs"),
    ("modules/src/lib.rs", "core/tests/decoders.rs"),
    ("modules/src/prepared.rs", "modules/src/messages.rs"),
    ("modules/src/serve.rs", "modules/src/messages.rs"),
    ("replica/src/hints.rs", "cluster/src/tests/decoders.rs"),
    ("request/src/args.rs", "request/src/args.rs"),
    ("src/cli/demo/tour.rs", "values/src/json.rs"),
    ("storage/src/header.rs", "storage/src/header.rs"),
    ("storage/src/keys.rs", "storage/src/keys.rs"),
    ("storage/src/witness.rs", "storage/src/witness.rs"),
    ("toolchain/src/project.rs", "toolchain/src/project.rs"),
    ("transport/src/badge.rs", "transport/src/badge.rs"),
    ("transport/src/frame.rs", "transport/src/frame.rs"),
    ("transport/src/hello.rs", "transport/src/hello.rs"),
    ("transport/src/identity.rs", "transport/src/tls.rs"),
    ("transport/src/tls.rs", "transport/src/tls.rs"),
    ("values/src/base64.rs", "values/src/text.rs"),
    ("values/src/cddl.rs", "values/src/cddl.rs"),
    ("values/src/document.rs", "values/src/cddl.rs"),
    ("values/src/text.rs", "values/src/text.rs"),
    ("vnode/src/native_kv.rs", "request/src/args.rs"),
    ("wasm/src/inspect.rs", "wasm/src/inspect.rs"),
];

/// Return the files of the host that decode. Tests and the simulation's environment do not count.
fn decoding_files() -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if !["tests", "harness", "deps", "examples", "target"].contains(&name.as_str()) {
                    walk(&path, found);
                }
                continue;
            }
            if !name.ends_with(".rs") || name == "tests.rs" {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let decodes = code.lines().any(|line| {
                !line.trim_start().starts_with("//") && MARKS.iter().any(|mark| line.contains(mark))
            });
            if decodes {
                let name = path.strip_prefix(root().join("host")).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("host"), &mut found);
    found.sort();
    found
}

#[test]
fn every_file_that_decodes_is_on_the_list() {
    let listed: Vec<String> = DECODERS.iter().map(|(file, _)| (*file).to_owned()).collect();
    let found = decoding_files();
    let missing: Vec<_> = found.iter().filter(|file| !listed.contains(file)).collect();
    let gone: Vec<_> = listed.iter().filter(|file| !found.contains(file)).collect();
    assert!(missing.is_empty(), "these files decode, and are not on the list with a test: {missing:#?}");
    assert!(gone.is_empty(), "these files of the list decode nothing: {gone:#?}");
}

#[test]
fn every_test_on_the_list_is_there() {
    let tests: BTreeMap<&str, &str> = DECODERS.iter().map(|(file, test)| (*test, *file)).collect();
    for (test, file) in tests {
        let text = std::fs::read_to_string(root().join("host").join(test));
        let text = text.unwrap_or_else(|error| panic!("the test of {file}, {test}: {error}"));
        let has = ["attack(&[", "proptest!", "junk", "damaged"].iter().any(|word| text.contains(word));
        assert!(
            has && text.contains("#[test]") || text.contains("proptest!"),
            "{test} has no test of {file}"
        );
    }
}
