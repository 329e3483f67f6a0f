//! Tests of command-line parsing: the arguments that are accepted, those that are rejected, and the errors.
#![allow(clippy::unwrap_used)]

use clap::{CommandFactory, Parser};

use super::*;

fn parse(words: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("annulus").chain(words.split_whitespace()))
}

#[test]
fn the_definition_of_the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_flags_may_stand_after_the_arguments_of_a_call() {
    let cli = parse("call kv put k v --format json --node 127.0.0.1:1 --data d").unwrap();
    assert_eq!(cli.global.format, Format::Json);
    assert_eq!(cli.global.node.as_deref(), Some("127.0.0.1:1"));
    assert!(matches!(cli.verb, Verb::Call(_)));
}

#[test]
fn words_of_a_verb_are_not_taken_for_global_flags() {
    let cli = parse("leave n3@h --node 127.0.0.1:1").unwrap();
    assert_eq!(cli.global.node.as_deref(), Some("127.0.0.1:1"));
    let cli = parse("leave n3@h").unwrap();
    assert_eq!(cli.global.node, None);
    assert_eq!(parse("start --name a@h --data d").unwrap().global.data, PathBuf::from("d"));
}

#[test]
fn malformed_command_lines_are_refused() {
    for words in [
        "",
        "call kv put k v --timeout 5",
        "call kv --arg novalue",
        "token --ttl never",
        "join",
        "deploy",
        "locate kv",
        "locate kv k --n 0",
        "bench kv --mix put=0",
        "bench kv --concurrency 0",
        "members extra",
        "ring --format yaml",
    ] {
        assert!(parse(words).is_err(), "{words}");
    }
}

#[test]
fn planned_verbs_are_reported_as_such_and_unknown_ones_get_a_suggestion() {
    for verb in LATER {
        let Verb::Unknown(words) = parse(verb).unwrap().verb else { panic!("`{verb}` exists") };
        let error = unknown(&words);
        assert!(matches!(&error, CliError::Usage(text) if text.contains("not in this version")), "{error}");
    }
    let error = unknown(&["mem".to_owned()]).to_string();
    assert!(error.contains("`mem`") && error.contains("`members`"), "{error}");
}
