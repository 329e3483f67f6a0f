//! The requests of a load. They are created before it starts, so that their creation is not measured.

use std::sync::Arc;

use annulus_core::keyspace::hash_key;
use bytes::Bytes;
use ciborium::Value;

use crate::{AdminError, BenchRequest, BenchTarget, encode};
use annulus_cluster::View;
use annulus_values::Type;
use annulus_wasm::{CommandInfo, Description, Param, Route};

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Shot {
    pub(super) command: Arc<str>,
    pub(super) key: Option<Bytes>,
    pub(super) args: Bytes,
}

/// The requests that a load picks from.
pub(super) struct Shots {
    commands: Vec<(u32, Vec<Shot>)>,
    shares: u64,
}

/// Maximum number of keys of a load. Each key takes memory for its arguments, once per command.
const MAX_KEYS: u32 = 100_000;
/// Maximum number of candidates per wanted key in the search for keys of the wanted owner.
const TRIES: u64 = 4096;

impl Shots {
    /// Make the requests for a deployed module.
    pub(super) fn new(
        view: &View,
        description: &Description,
        request: &BenchRequest,
    ) -> Result<Self, AdminError> {
        let ring = &view.state.ring;
        let wanted = |key: &[u8]| {
            let partition = ring.size.partition_of(&hash_key(request.module.as_bytes(), key));
            match request.target {
                BenchTarget::Any => true,
                BenchTarget::Local => ring.owner(partition) == view.me,
                BenchTarget::Remote => ring.owner(partition) != view.me,
            }
        };
        Self::build(description, request, &request.mix, wanted)
    }

    /// Make the requests for a key/value store outside the ring: those commands of the mix that it has or, if
    /// there are none, half puts and half gets.
    pub(super) fn of_kv(description: &Description, request: &BenchRequest) -> Result<Self, AdminError> {
        let mut mix = request.mix.clone();
        mix.retain(|(name, _)| description.command(name).is_some());
        if mix.is_empty() {
            mix = vec![("put".to_owned(), 1), ("get".to_owned(), 1)];
        }
        Self::build(description, request, &mix, |_| true)
    }

    fn build(
        description: &Description,
        request: &BenchRequest,
        mix: &[(String, u32)],
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, AdminError> {
        let bad = |why: String| Err(AdminError::not_applied("bad-arguments", why));
        if mix.is_empty() || !(1..=MAX_KEYS).contains(&request.keys) {
            return bad(format!("a load needs a mix of commands and 1 to {MAX_KEYS} keys"));
        }
        let mut commands = Vec::with_capacity(mix.len());
        for (name, share) in mix {
            let Some(command) = description.command(name) else {
                let names: Vec<&str> =
                    description.commands.iter().map(|command| command.name.as_str()).collect();
                return bad(format!(
                    "{} has no command `{name}`; it has {}",
                    description.name,
                    names.join(", ")
                ));
            };
            let shots = match &command.route {
                Route::Everywhere => {
                    return bad(format!("{name} is routed to every partition and cannot be used as a load"));
                }
                Route::Anywhere if request.target != BenchTarget::Any => {
                    return bad(format!("{name} has no key that could be local or remote; use --target any"));
                }
                Route::Anywhere => vec![shot(command, None, 0, request)],
                Route::ByParam(param) => {
                    let mut shots = Vec::with_capacity(request.keys as usize);
                    for number in 0..u64::from(request.keys) * TRIES {
                        if shots.len() == request.keys as usize || (number >= TRIES && shots.is_empty()) {
                            break;
                        }
                        let shot = shot(command, Some(param), number, request);
                        if shot.key.as_deref().is_some_and(&wanted) {
                            shots.push(shot);
                        }
                    }
                    shots
                }
            };
            if shots.is_empty() {
                return bad("no key has such an owner: a local key needs a partition on this node, a remote key another node".to_owned());
            }
            commands.push((*share, shots));
        }
        let shares = commands.iter().map(|(share, _)| u64::from(*share)).sum();
        Ok(Self { commands, shares })
    }

    /// Return the request of a turn. Turns are spread over the commands by their shares, and evenly over the
    /// keys.
    pub(super) fn pick(&self, turn: u64) -> Shot {
        let bits = scramble(turn);
        let mut share = (bits >> 32) % self.shares;
        for (of, shots) in &self.commands {
            match share.checked_sub(u64::from(*of)) {
                Some(rest) => share = rest,
                None => return shots[(bits as u32) as usize % shots.len()].clone(),
            }
        }
        // Unreachable: the shares add up to `self.shares`, so the loop has returned.
        self.commands[0].1[0].clone()
    }
}

/// SplitMix64. Neighbouring turns get unrelated keys, the same ones in each run.
fn scramble(turn: u64) -> u64 {
    let mut bits = turn.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn shot(command: &CommandInfo, routed_by: Option<&str>, number: u64, request: &BenchRequest) -> Shot {
    let mut key = None;
    let mut entries = Vec::new();
    for param in command.params.iter().filter(|param| !param.optional) {
        let value = if Some(param.name.as_str()) == routed_by {
            let (value, bytes) = key_value(param, number);
            key = Some(bytes);
            value
        } else {
            filler(&Type::parse(&param.ty), request.value_bytes as usize)
        };
        entries.push((Value::Text(param.name.clone()), value));
    }
    Shot { command: command.name.as_str().into(), key, args: encode(&Value::Map(entries)) }
}

/// Return a key of the parameter's type, and the bytes by which it is routed.
fn key_value(param: &Param, number: u64) -> (Value, Bytes) {
    match Type::parse(&param.ty) {
        Type::Int | Type::Uint => (Value::Integer(number.into()), number.to_string().into()),
        Type::Bytes => (Value::Bytes(number.to_be_bytes().to_vec()), number.to_be_bytes().to_vec().into()),
        _ => {
            let text = format!("bench-{number}");
            (Value::Text(text.clone()), text.into())
        }
    }
}

/// Return a value of a type; texts and byte strings get the length `bytes`.
fn filler(ty: &Type, bytes: usize) -> Value {
    match ty {
        Type::Text | Type::Any => Value::Text("x".repeat(bytes)),
        Type::Bytes => Value::Bytes(vec![b'x'; bytes]),
        Type::Int | Type::Uint => Value::Integer(1.into()),
        Type::Float => Value::Float(1.0),
        Type::Bool => Value::Bool(true),
        Type::Null => Value::Null,
        Type::Array(_) => Value::Array(Vec::new()),
        Type::Map(_) => Value::Map(Vec::new()),
        Type::Choice(types) => types.first().map_or(Value::Null, |ty| filler(ty, bytes)),
        Type::Literal(value) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_vnode::native_kv;

    fn request(mix: &[(&str, u32)]) -> BenchRequest {
        BenchRequest {
            module: "kv".into(),
            mix: mix.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect(),
            concurrency: 1,
            duration_ms: 1,
            target: BenchTarget::Any,
            keys: 100,
            value_bytes: 10,
            baseline: false,
        }
    }

    #[test]
    fn turns_follow_the_shares_and_spread_over_the_keys() {
        let kv = native_kv().description;
        let shots = Shots::of_kv(&kv, &request(&[("put", 90), ("get", 10)])).unwrap();
        let picked: Vec<Shot> = (0..10_000).map(|turn| shots.pick(turn)).collect();
        let puts = picked.iter().filter(|shot| &*shot.command == "put").count();
        assert!((8800..9200).contains(&puts), "{puts}");
        let keys: std::collections::BTreeSet<_> = picked.iter().map(|shot| shot.key.clone()).collect();
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn only_keys_of_the_wanted_owner_are_used() {
        let kv = native_kv().description;
        let request = request(&[("get", 1)]);
        let shots = Shots::build(&kv, &request, &request.mix, |key| key.ends_with(b"7")).unwrap();
        assert!((0..500).all(|turn| shots.pick(turn).key.unwrap().ends_with(b"7")));
        assert!(Shots::build(&kv, &request, &request.mix, |_| false).is_err());
    }

    #[test]
    fn unknown_commands_are_refused() {
        let kv = native_kv().description;
        let request = request(&[("steal", 1)]);
        assert!(Shots::build(&kv, &request, &request.mix, |_| true).err().unwrap().message.contains("put"));
    }
}
