//! Tests of `#[derive(Commands)]`: the generated command descriptions, and decoding errors that name the parameter.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;

use annulus_guest::prelude::*;
use annulus_guest::{Effect, Param, Route};

#[derive(Commands, Debug, PartialEq)]
enum Command {
    /// Two lines of
    /// one paragraph.
    ///
    /// And another.
    #[command(write, reply = "uint")]
    PutAll {
        /// The routing key.
        key: String,
        blob: Vec<u8>,
        tags: Vec<String>,
        counts: BTreeMap<String, u32>,
        limit: Option<i64>,
        maybe_blob: Option<Vec<u8>>,
        #[arg(default, ty = "float .ge 0")]
        weight: f64,
    },
    #[command(update, key = user, name = "raise")]
    Increment { user: u64 },
    #[command(anywhere)]
    Echo { key: Value },
    #[command(everywhere)]
    Keys,
    #[command(key = id)]
    ByBytes { id: Vec<u8> },
}

fn cbor(value: &Value) -> Vec<u8> {
    reply(value).unwrap().into_bytes()
}

fn map(entries: &[(&str, Value)]) -> Vec<u8> {
    cbor(&Value::Map(entries.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect()))
}

#[test]
fn an_enum_describes_its_commands() {
    let commands = Command::describe();
    let names: Vec<&str> = commands.iter().map(|command| command.name.as_str()).collect();
    assert_eq!(names, ["put-all", "raise", "echo", "keys", "by-bytes"]);
    let put = &commands[0];
    assert_eq!(put.doc, "Two lines of one paragraph.\n\nAnd another.");
    assert_eq!((put.effect, put.reply.as_str()), (Effect::Write, "uint"));
    assert_eq!(put.route, Route::ByParam("key".to_owned()));
    assert_eq!(
        put.params,
        [
            Param::required("key", "text", "The routing key."),
            Param::required("blob", "bytes", ""),
            Param::required("tags", "[* text]", ""),
            Param::required("counts", "{* text => uint}", ""),
            Param::optional("limit", "int", ""),
            Param::optional("maybe_blob", "bytes", ""),
            Param::optional("weight", "float .ge 0", ""),
        ]
    );
    assert_eq!(
        (commands[1].effect, &commands[1].route),
        (Effect::Update, &Route::ByParam("user".to_owned()))
    );
    assert_eq!((commands[2].effect, &commands[2].route), (Effect::Read, &Route::Anywhere));
    assert_eq!(commands[3].route, Route::Everywhere);
    assert_eq!(commands[4].route, Route::ByParam("id".to_owned()));
}

#[test]
fn arguments_are_decoded_by_name() {
    let args = map(&[
        ("unheard-of", Value::Null),
        ("blob", Value::Bytes(vec![1, 2])),
        ("tags", Value::Array(vec!["a".into()])),
        ("counts", Value::Map(vec![("n".into(), 3.into())])),
        ("maybe_blob", Value::Bytes(vec![9; 5000])),
        ("key", "k".into()),
    ]);
    let expected = Command::PutAll {
        key: "k".to_owned(),
        blob: vec![1, 2],
        tags: vec!["a".to_owned()],
        counts: BTreeMap::from([("n".to_owned(), 3)]),
        limit: None,
        maybe_blob: Some(vec![9; 5000]),
        weight: 0.0,
    };
    assert_eq!(Command::decode("put-all", &args), Ok(expected));
    assert_eq!(Command::decode("keys", &[]), Ok(Command::Keys));
    assert_eq!(Command::decode("raise", &map(&[("user", 7.into())])), Ok(Command::Increment { user: 7 }));
    assert_eq!(Command::decode("Keys", &[]), Err(Failure::UnknownCommand));
}

#[test]
fn a_bad_argument_is_reported_with_its_name_and_the_reason() {
    let why = |command: &str, args: &[u8]| match Command::decode(command, args) {
        Err(Failure::BadArguments(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why("raise", &[]), "missing field `user`");
    assert_eq!(why("raise", &map(&[])), "missing field `user`");
    assert!(why("raise", &map(&[("other", Value::Null), ("user", "x".into())])).starts_with("`user`: "));
    assert!(why("raise", &map(&[("user", (-1).into())])).starts_with("`user`: "));
    assert!(why("by-bytes", &map(&[("id", "text".into())])).starts_with("`id`: "));
    assert!(why("raise", &cbor(&Value::from(7))).contains("map"));
    assert!(!why("raise", &[0xa1]).is_empty());
    let mut trailing = map(&[("user", 7.into())]);
    trailing.push(0);
    assert!(why("raise", &trailing).contains("1 bytes after"));
}
