//! Converts the words of the command line to a command's typed arguments, by the module's description.

use ciborium::Value;

use super::super::CliError;
use super::super::words::Given;
use super::help;
use annulus_values::Type;
use annulus_wasm::{CommandInfo, Param, Route};

/// Build the CBOR map of a call.
///
/// Positional words fill the parameters that are not in `named`, in the order of the description.
pub(super) fn build(
    module: &str,
    command: &CommandInfo,
    words: &[Given],
    named: &[(String, Given)],
) -> Result<Value, CliError> {
    let usage = |what: String| CliError::Usage(format!("{what}\nusage: {}", help::usage(module, command)));
    let typed = |param: &Param, given: &Given| match given.typed(&Type::parse(&param.ty)) {
        Ok(value) => Ok((Value::Text(param.name.clone()), value)),
        Err(error) => Err(usage(format!("{}: {error}", param.name))),
    };
    for (at, (name, _)) in named.iter().enumerate() {
        if !command.params.iter().any(|param| param.name == *name) {
            return Err(usage(format!("{} has no parameter `{name}`", command.name)));
        }
        if named[..at].iter().any(|(other, _)| other == name) {
            return Err(usage(format!("{name} is given twice")));
        }
    }
    let mut words = words.iter();
    let mut entries = Vec::new();
    for param in &command.params {
        let given = named.iter().find(|(name, _)| *name == param.name).map(|(_, given)| given);
        match given.or_else(|| words.next()) {
            Some(given) => entries.push(typed(param, given)?),
            None if param.optional => {}
            None => {
                let hint = "a value that looks like an option must follow --";
                return Err(usage(format!("{} is missing ({hint})", param.name)));
            }
        }
    }
    match words.next() {
        Some(Given::Word(word)) => Err(usage(format!("{word:?} is one argument too many"))),
        Some(Given::Contents(_)) => Err(usage("a file is one argument too many".to_owned())),
        None => Ok(Value::Map(entries)),
    }
}

/// Return the routing key of a call, or `None` if its command is not routed by a parameter.
///
/// The key is the UTF-8 of a text, the bytes of a byte string, or the decimal digits of an integer.
pub(super) fn routing_key(command: &CommandInfo, args: &Value) -> Option<Vec<u8>> {
    let Route::ByParam(name) = &command.route else { return None };
    let entries = args.as_map()?;
    let (_, value) = entries.iter().find(|(key, _)| key.as_text() == Some(name))?;
    key_bytes(value)
}

fn key_bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Text(text) => Some(text.clone().into_bytes()),
        Value::Bytes(bytes) => Some(bytes.clone()),
        Value::Integer(number) => Some(i128::from(*number).to_string().into_bytes()),
        _ => None,
    }
}

/// Check that `--key` agrees with the routing key in the arguments; it never overrides it.
pub(super) fn check_key(
    command: &CommandInfo,
    word: &str,
    said: &Given,
    key: Option<&[u8]>,
) -> Result<(), CliError> {
    let refuse = |why: String| Err(CliError::Usage(format!("--key {word:?} is refused: {why}")));
    match (&command.route, key) {
        (Route::ByParam(name), Some(key)) => {
            let ty =
                command.params.iter().find(|param| param.name == *name).map(|param| Type::parse(&param.ty));
            let wanted = ty.and_then(|ty| said.typed(&ty).ok()).and_then(|value| key_bytes(&value));
            if wanted.as_deref() == Some(key) {
                Ok(())
            } else {
                refuse(format!("{} is routed by its argument {name}, which has another key", command.name))
            }
        }
        (Route::Everywhere, _) => refuse(format!("{} goes to every partition", command.name)),
        _ => refuse(format!("{} goes to any partition", command.name)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_wasm::Effect;

    fn param(name: &str, ty: &str, optional: bool) -> Param {
        Param { name: name.into(), ty: ty.into(), doc: String::new(), optional }
    }

    fn put() -> CommandInfo {
        CommandInfo {
            name: "put".into(),
            doc: String::new(),
            effect: Effect::Write,
            route: Route::ByParam("key".into()),
            params: vec![
                param("key", "text", false),
                param("value", "any", false),
                param("ttl", "uint", true),
            ],
            reply: "text".into(),
            frees: false,
        }
    }

    fn words(words: &[&str]) -> Vec<Given> {
        words.iter().map(|word| Given::Word((*word).to_owned())).collect()
    }

    fn named(name: &str, value: &str) -> Vec<(String, Given)> {
        vec![(name.to_owned(), Given::Word(value.to_owned()))]
    }

    fn check(command: &CommandInfo, said: &str, key: Option<&[u8]>) -> Result<(), CliError> {
        check_key(command, said, &Given::Word(said.to_owned()), key)
    }

    fn json(args: &Value) -> String {
        annulus_values::to_json(args).to_string()
    }

    #[test]
    fn words_fill_the_parameters_that_are_not_named() {
        let args = build("kv", &put(), &words(&["k", "5"]), &[]).unwrap();
        assert_eq!(json(&args), r#"{"key":"k","value":5}"#);
        let args = build("kv", &put(), &words(&["v"]), &named("key", "k")).unwrap();
        assert_eq!(json(&args), r#"{"key":"k","value":"v"}"#);
        let args = build("kv", &put(), &words(&["k", "v", "9"]), &[]).unwrap();
        assert_eq!(json(&args), r#"{"key":"k","ttl":9,"value":"v"}"#);
        assert_eq!(routing_key(&put(), &args).unwrap(), b"k");
        let args =
            build("kv", &put(), &[words(&["k"]), vec![Given::Contents(b"v\n".to_vec())]].concat(), &[]);
        assert_eq!(json(&args.unwrap()), r#"{"key":"k","value":"v\n"}"#);
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused_with_the_usage() {
        for (given, by_name, says) in [
            (words(&["k"]), vec![], "value is missing"),
            (words(&["k", "v", "1", "x"]), vec![], "one argument too many"),
            (words(&["k", "v", "-1"]), vec![], "ttl: \"-1\" is not uint"),
            (words(&["k", "v"]), named("colour", "red"), "no parameter `colour`"),
            (words(&["v"]), [named("key", "a"), named("key", "b")].concat(), "given twice"),
        ] {
            let error = build("kv", &put(), &given, &by_name).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("usage: annulus call kv put KEY VALUE [TTL]"), "{error}");
        }
    }

    #[test]
    fn a_key_that_disagrees_is_refused() {
        assert!(check(&put(), "k", Some(b"k")).is_ok());
        assert!(check(&put(), "other", Some(b"k")).is_err());
        let keys = CommandInfo { route: Route::Everywhere, params: vec![], ..put() };
        assert!(check(&keys, "k", None).is_err());
        let counter = CommandInfo { params: vec![param("key", "uint", false)], ..put() };
        let args = build("n", &counter, &words(&["007"]), &[]).unwrap();
        assert_eq!(routing_key(&counter, &args).unwrap(), b"7");
        assert!(check(&counter, "7", Some(b"7")).is_ok());
        let blob = CommandInfo { params: vec![param("key", "bytes", false)], ..put() };
        assert!(check(&blob, "0x00ff", Some(&[0, 255])).is_ok());
        assert!(check(&blob, "k", Some(b"k")).is_err());
    }
}
