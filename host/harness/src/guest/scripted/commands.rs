//! The commands of a scripted guest.

use std::time::Duration;

use annulus_core::contract::Values;
use annulus_core::description::CommandInfo;
use annulus_core::ids::RequestId;
use annulus_core::item::{Budget, Item};
use annulus_core::request::{GuestRefusal, Request};
use annulus_vnode::CommandResult;
use annulus_wasm::{Answer, CommandFailure, Doom, GuestError};
use ciborium::Value;

use super::super::{Entry, Outcome, Run, Write};
use super::{Scripted, trapped};

/// A running command.
struct Asked<'a> {
    info: &'a CommandInfo,
    id: RequestId,
    request: &'a Request,
}

/// The faults drawn for a command that happen after its effect.
struct Fate {
    traps_after: bool,
    doomed: bool,
}

impl Scripted {
    pub(super) async fn run_command(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
    ) -> Result<CommandResult<Vec<u8>>, GuestError> {
        let mut under_way = self.under_way("handle-command");
        let asked = Asked { info, id: request_id(id), request };
        let args = match arguments(&request.args) {
            Ok(args) => args,
            Err(failure) => {
                under_way.returned();
                return Ok(Err(failure));
            }
        };
        let fate = match self.fate(&asked).await? {
            Ok(fate) => fate,
            Err(failure) => {
                under_way.returned();
                return Ok(Err(failure));
            }
        };
        if request.command == "spin" {
            let ms = args.get("ms").and_then(|ms| u64::try_from(ms.as_integer()?).ok()).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let mut writes = Vec::new();
        let reply = match self.do_one(request, &args, &mut writes).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(failure)) => {
                self.tell(&asked, &[], Outcome::Refused);
                under_way.returned();
                return Ok(Err(failure));
            }
            Err(error) => {
                self.tell(&asked, &writes, Outcome::Trapped);
                return Err(error);
            }
        };
        let answer = self.settle(&asked, &fate, writes, Outcome::Reply(&reply))?;
        under_way.returned();
        let mut value = Vec::new();
        ciborium::into_writer(&reply, &mut value).expect("a value is plain data and a Vec never fails");
        Ok(Ok(Answer { value, writes: answer.0, doom: answer.1 }))
    }

    pub(super) async fn run_page(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<CommandResult<Values>, GuestError> {
        let mut under_way = self.under_way("handle-coverage");
        let asked = Asked { info, id: request_id(id), request };
        let fate = match self.fate(&asked).await? {
            Ok(fate) => fate,
            Err(failure) => {
                under_way.returned();
                return Ok(Err(failure));
            }
        };
        let most = (limit.items as usize).max(1);
        let entries = self.entries(after, most + 1).await?;
        // A page with tombstones holds fewer values than its limit although more entries follow.
        let mut more = entries.len() > most;
        let (mut values, mut encoded, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        let mut writes = Vec::new();
        let (mut bytes, mut last) = (0, None);
        for (key, entry) in entries {
            let value = Value::from(String::from_utf8_lossy(&key).into_owned());
            let mut one = Vec::new();
            ciborium::into_writer(&value, &mut one).expect("a value is plain data and a Vec never fails");
            bytes += one.len();
            if last.is_some() && (encoded.len() >= most || bytes > limit.bytes as usize) {
                more = true;
                break;
            }
            if !entry.deleted {
                encoded.push(one);
                values.push(value);
                if request.command == "clear" {
                    self.write(&key, Some(&entry), None, &mut writes)?;
                    touched.push(key.clone());
                }
            }
            last = Some(key);
        }
        let next = last.filter(|_| more);
        let (stored, doom) = self.settle(&asked, &fate, writes, Outcome::Page(&values))?;
        under_way.returned();
        let touched = if self.keeps() { touched } else { Vec::new() };
        Ok(Ok(Answer { value: Values { values: encoded, touched, next }, writes: stored, doom }))
    }

    /// Apply the faults before a command's effect (a pause, a loop, a refusal, a trap) and draw those after it.
    async fn fate(&self, asked: &Asked<'_>) -> Result<Result<Fate, CommandFailure>, GuestError> {
        self.wait().await;
        if self.falls(self.script.loops) {
            std::future::pending::<()>().await;
        }
        if self.falls(self.script.refuses) {
            self.tell(asked, &[], Outcome::Refused);
            return Ok(Err(refused("scripted")));
        }
        let traps = self.falls(self.script.traps.command);
        let traps_after = traps && annulus_ground::random();
        if traps && !traps_after {
            return Err(trapped(&asked.request.command));
        }
        Ok(Ok(Fate { traps_after, doomed: self.falls(self.script.dooms) }))
    }

    /// Tell the observer about the command's effect and pass the writes to the host, or end the instance.
    fn settle(
        &self,
        asked: &Asked<'_>,
        fate: &Fate,
        writes: Vec<Write>,
        outcome: Outcome<'_>,
    ) -> Result<(Vec<Item>, Option<Doom>), GuestError> {
        if fate.traps_after {
            self.tell(asked, &writes, Outcome::Trapped);
            return Err(trapped(&asked.request.command));
        }
        let (stored, too_large) = self.to_host(&writes);
        let doom = too_large.or_else(|| fate.doomed.then_some(Doom::WrongKey));
        self.tell(asked, &writes, if doom.is_some() { Outcome::Doomed } else { outcome });
        Ok((stored, doom))
    }

    /// Run the command of a key. The inner error means that nothing has changed.
    async fn do_one(
        &mut self,
        request: &Request,
        args: &Arguments,
        writes: &mut Vec<Write>,
    ) -> Result<Result<Value, CommandFailure>, GuestError> {
        let missing = |name: &str| Ok(Err(CommandFailure::BadArguments(format!("missing field `{name}`"))));
        if request.command == "spin" {
            return Ok(Ok(Value::Null));
        }
        let Some(key) = &request.key else { return missing("key") };
        let before = self.entry(key).await?;
        let present = before.as_ref().filter(|entry| !entry.deleted).map(|entry| entry.value.clone());
        let version = |entry: &Entry| Value::from(entry.version);
        let reply = match request.command.as_str() {
            "get" => present.unwrap_or(Value::Null),
            "put" => {
                let Some(value) = args.get("value") else { return missing("value") };
                version(&self.write(key, before.as_ref(), Some(value.clone()), writes)?)
            }
            "delete" => {
                if present.is_some() {
                    self.write(key, before.as_ref(), None, writes)?;
                }
                present.unwrap_or(Value::Null)
            }
            "append" => {
                let Some(value) = args.get("value") else { return missing("value") };
                let mut all = match present {
                    Some(Value::Array(all)) => all,
                    other => other.into_iter().collect(),
                };
                all.push(value.clone());
                let length = Value::from(all.len() as u64);
                self.write(key, before.as_ref(), Some(Value::Array(all)), writes)?;
                length
            }
            "update" => {
                let (Some(from), Some(to)) = (args.get("from"), args.get("to")) else {
                    return missing("from` or `to");
                };
                let as_expected = present.as_ref().unwrap_or(&Value::Null) == from;
                if as_expected {
                    self.write(key, before.as_ref(), Some(to.clone()), writes)?;
                }
                Value::from(as_expected)
            }
            _ => return Ok(Err(CommandFailure::UnknownCommand)),
        };
        Ok(Ok(reply))
    }

    /// Write one entry. A guest that keeps its items stores it here; the host takes its items from the answer.
    fn write(
        &mut self,
        key: &[u8],
        before: Option<&Entry>,
        value: Option<Value>,
        writes: &mut Vec<Write>,
    ) -> Result<Entry, GuestError> {
        let pad = if value.is_some() { self.script.oversize.pad() } else { 0 };
        let entry = Entry::after(before, self.next_dot(), value, pad);
        writes.push(Write { key: key.to_vec(), entry: entry.clone() });
        if self.keeps() {
            self.keep(key, entry.clone())?;
        }
        Ok(entry)
    }

    /// Encode the writes for the host, with the limits that the host has for components.
    fn to_host(&self, writes: &[Write]) -> (Vec<Item>, Option<Doom>) {
        let (mut stored, mut all) = (Vec::new(), 0);
        if self.keeps() {
            return (stored, None);
        }
        for write in writes {
            let value = write.entry.encode(self.at.write_format);
            let bytes = write.key.len() + value.len();
            all += bytes;
            let (item_limit, batch_limit) = (self.limits.item_bytes, self.limits.batch_bytes);
            if bytes > item_limit {
                return (Vec::new(), Some(Doom::TooLarge { what: "an item", bytes, limit: item_limit }));
            }
            if all > batch_limit {
                let what = "all that one call writes";
                return (Vec::new(), Some(Doom::TooLarge { what, bytes: all, limit: batch_limit }));
            }
            let deleted = write.entry.deleted;
            stored.push(Item { key: write.key.clone(), sort: Vec::new(), value, deleted });
        }
        (stored, None)
    }

    fn tell(&self, asked: &Asked<'_>, writes: &[Write], outcome: Outcome<'_>) {
        self.observer.ran(&Run {
            at: &self.at,
            release: self.script.release,
            keeps: self.script.keeps,
            key: asked.request.key.as_deref(),
            id: asked.id,
            command: &asked.request.command,
            effect: asked.info.effect,
            writes,
            outcome,
        });
    }
}

type Arguments = std::collections::BTreeMap<String, Value>;

fn arguments(args: &[u8]) -> Result<Arguments, CommandFailure> {
    ciborium::from_reader(args).map_err(|error| CommandFailure::BadArguments(error.to_string()))
}

fn refused(code: &str) -> CommandFailure {
    let message = "the script refuses".to_owned();
    CommandFailure::Refused(GuestRefusal { code: code.to_owned(), message, detail: None })
}

fn request_id((high, low): (u64, u64)) -> RequestId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&high.to_be_bytes());
    id[8..].copy_from_slice(&low.to_be_bytes());
    RequestId(id)
}
