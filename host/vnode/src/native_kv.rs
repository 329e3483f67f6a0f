//! A key/value store in plain Rust: the baseline of `bench --baseline`.
//!
//! It runs in the same actor behind the same mailbox as `guests/memkv` and does the same, so the difference between
//! the two is the cost of WebAssembly. `guests/kv` has the same commands and pays for host storage as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_core::description::{CommandInfo, Description, Effect, Param, Route};
use annulus_core::request::Request;
use ciborium::Value;

use super::release::Release;
use super::runtime::{CommandResult, GuestCall, InstanceConfig, Program, Runtime};
use annulus_wasm::{Answer, CommandFailure};

/// Starts [`NativeKv`]s.
struct NativeKvProgram;

impl Program for NativeKvProgram {
    fn start<'a>(&'a self, _: InstanceConfig<'a>) -> GuestCall<'a, Box<dyn Runtime>> {
        GuestCall::done(Box::new(NativeKv::default()) as Box<dyn Runtime>)
    }
}

/// A key/value store in the memory of this process.
#[derive(Default)]
struct NativeKv {
    data: BTreeMap<String, Value>,
}

impl Runtime for NativeKv {
    fn command<'a>(
        &'a mut self,
        _: &'a CommandInfo,
        _: (u64, u64),
        request: &'a Request,
    ) -> GuestCall<'a, CommandResult<Vec<u8>>> {
        GuestCall::done(self.run(request).map(|value| Answer { value, writes: Vec::new(), doom: None }))
    }
}

impl NativeKv {
    fn run(&mut self, request: &Request) -> Result<Vec<u8>, CommandFailure> {
        let args: Value = ciborium::from_reader(&request.args[..])
            .map_err(|error| CommandFailure::BadArguments(error.to_string()))?;
        let Value::Map(args) = args else { return Err(CommandFailure::BadArguments("not a map".to_owned())) };
        let mut key = None;
        let mut value = None;
        for (name, argument) in args {
            match (name.as_text(), argument) {
                (Some("key"), Value::Text(text)) => key = Some(text),
                (Some("value"), argument) => value = Some(argument),
                _ => {}
            }
        }
        let key = key.ok_or_else(|| CommandFailure::BadArguments("missing field `key`".to_owned()))?;
        let reply = match request.command.as_str() {
            "put" => {
                let value =
                    value.ok_or_else(|| CommandFailure::BadArguments("missing field `value`".to_owned()))?;
                self.data.insert(key, value);
                Value::from("ok")
            }
            "get" => self.data.get(&key).cloned().unwrap_or(Value::Null),
            "delete" => self.data.remove(&key).unwrap_or(Value::Null),
            _ => return Err(CommandFailure::UnknownCommand),
        };
        let mut bytes = Vec::with_capacity(32);
        ciborium::into_writer(&reply, &mut bytes).expect("a value is plain data and a Vec never fails");
        Ok(bytes)
    }
}

/// Return the release of the baseline, with the commands of `guests/memkv`.
pub fn native_kv() -> Release {
    let param = |name: &str, ty: &str| Param {
        name: name.to_owned(),
        ty: ty.to_owned(),
        doc: String::new(),
        optional: false,
    };
    let command = |name: &str, effect, params: Vec<Param>| CommandInfo {
        name: name.to_owned(),
        doc: String::new(),
        effect,
        route: Route::ByParam("key".to_owned()),
        params,
        reply: "any".to_owned(),
        frees: false,
    };
    let description = Description {
        name: "native-kv".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        doc: "The baseline of `bench`: guests/memkv in plain Rust".to_owned(),
        commands: vec![
            command("put", Effect::Write, vec![param("key", "text"), param("value", "any")]),
            command("get", Effect::Read, vec![param("key", "text")]),
            command("delete", Effect::Write, vec![param("key", "text")]),
        ],
        config: Vec::new(),
        writes_formats: vec![1],
        reads_formats: vec![1],
        exported: annulus_wasm::Exported::default(),
    };
    Release::native("native-kv".into(), description, Arc::new(NativeKvProgram))
}
