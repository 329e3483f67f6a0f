//! A guest that does everything a guest should not do, each on request. The host must survive all of it.
//!
//! Each command misbehaves in the way that its name says. The settings `fail`, `fold`, `reject` and `nap` make
//! `init`, the fold, the receiving side of a handoff and the other callbacks misbehave; the crate's features
//! make `describe` misbehave.

mod items;
mod large;

use std::hint::black_box;

use annulus_guest::prelude::*;
use annulus_guest::{Choice, Kind, Request};
use items::Shelf;

#[derive(Default)]
struct Hostile {
    shelf: Shelf,
    moods: Moods,
    /// Number of commands that this instance has run. It starts at 0 in a new instance.
    calls: u64,
}

#[derive(Commands)]
#[allow(dead_code)] // some keys only route the command, which then accesses other keys
enum Command {
    /// Return the argument. Well behaved.
    Echo { value: Value },
    /// Return the number of commands that this instance has run, including this one. Well behaved.
    Calls,
    /// Store a value in memory. Well behaved.
    #[command(write)]
    Put { key: String, value: Value },
    /// Return the value of a key, or null. Well behaved.
    Get { key: String },
    /// Delete a key. Well behaved.
    #[command(write, frees)]
    Delete { key: String },
    /// Store an item of this many bytes, which follow from the number. Well behaved.
    #[command(write)]
    Fill { key: String, number: u64, bytes: u64 },
    /// Return the number, length and sum of the item that `fill` stored, or null. Well behaved.
    Sum { key: String },
    /// Return every key. Well behaved.
    #[command(everywhere)]
    Keys,
    /// Refuse, with a detail.
    Refuse { code: String },
    /// Never end.
    Spin,
    /// Sleep for years, in WASI.
    Nap,
    /// Write to memory, then never end.
    #[command(write)]
    PutAndSpin { key: String, value: Value },
    /// Trap.
    Trap,
    /// Write to memory and to storage, then trap.
    #[command(write)]
    PutAndTrap { key: String, value: Value },
    /// Allocate without end.
    Bomb,
    /// Return a reply of this many bytes, by default 100 MB.
    Huge { bytes: Option<u64> },
    /// Compute for about this many milliseconds, then reply.
    Sleepy { ms: u64 },
    /// Compute for about this many milliseconds in each partition.
    #[command(everywhere)]
    SleepyEverywhere { ms: u64 },
    /// Recurse without end.
    Deep,
    /// Return a reply that is not CBOR.
    NoCbor,
    /// Write to storage, although the command is described as reading.
    WriteInRead { key: String },
    /// Write to storage under another key than the command's own.
    #[command(write)]
    WrongKey { key: String, other: String },
    /// Read from storage under another key than the command's own.
    #[command(write)]
    PeekAtOther { key: String, other: String },
    /// Write to storage, although the command is routed anywhere.
    #[command(write)]
    Homeless,
    /// Write this many bytes to storage under the command's key.
    #[command(write)]
    BigItem { key: String, bytes: u64 },
    /// Write to storage, then refuse. The write must not remain.
    #[command(write)]
    WriteAndRefuse { key: String },
    /// Return the bytes in storage under the command's key, as an earlier write left them, or null.
    Stored { key: String },
    /// Log this many lines of a kilobyte.
    Chatter { lines: u64 },
    /// Log a message unchanged, including line breaks.
    Forge { message: String },
    /// Run coverage whose pages never end.
    #[command(everywhere)]
    EndlessPages,
    /// Run coverage that never replies.
    #[command(everywhere)]
    SpinEverywhere,
    /// Run coverage that sleeps for years.
    #[command(everywhere)]
    NapEverywhere,
    /// Run coverage that traps.
    #[command(everywhere)]
    TrapEverywhere,
}

impl Vnode for Hostile {
    type Command = Command;

    fn name() -> String {
        if cfg!(feature = "describe-traps") {
            panic!("describe traps");
        }
        if cfg!(feature = "describe-spins") {
            spin();
        }
        if cfg!(feature = "describe-naps") {
            nap();
        }
        if cfg!(feature = "describe-lies") { "../no name".to_owned() } else { "hostile".to_owned() }
    }

    fn version() -> String {
        if cfg!(feature = "describe-fat") { "9".repeat(9_000_000) } else { "1".to_owned() }
    }

    fn config() -> Vec<Param> {
        vec![
            Param::optional("fail", "text", "init: `trap`, `spin`, `nap`, or the error that it answers"),
            Param::optional("fail-after", "uint", "`fail` is meant from that time on, in ms since 1970"),
            Param::optional(
                "fold",
                "text",
                "the fold: `trap`, `spin`, `nap`, `stuck` (its token never moves) or `empty` (its pages have no items and no end)",
            ),
            Param::optional(
                "reject",
                "text",
                "items that come in: `all`, `trap`, `nap`, or a key that is rejected",
            ),
            Param::optional(
                "write",
                "text",
                "callbacks that write to storage under their own name: as for `nap`, and `init`, `take`",
            ),
            Param::optional(
                "nap",
                "text",
                "callbacks that sleep for years, with commas between: `handoff-starting`, `handoff-finished`, `handoff-cancelled`, `handoff-command`, `handle-exit`, `terminate`, `delete`, `forget`, `items`",
            ),
        ]
    }

    fn init(&mut self, config: Config) -> Result<(), String> {
        self.shelf.fold = config.get("fold")?;
        self.shelf.reject = config.get("reject")?;
        self.moods = Moods {
            nap: config.get("nap")?.unwrap_or_default(),
            write: config.get("write")?.unwrap_or_default(),
        };
        self.shelf.moods = self.moods.clone();
        self.moods.in_callback("init");
        let fail_after: Option<u64> = config.get("fail-after")?;
        match config.get::<String>("fail")?.as_deref() {
            _ if fail_after.is_some_and(|from| host::now_ms() < from) => Ok(()),
            None => Ok(()),
            Some("nap") => nap(),
            Some("trap") => panic!("init traps"),
            Some("spin") => spin(),
            Some(reason) => Err(reason.to_owned()),
        }
    }

    fn handle_command(&mut self, command: Command) -> Result<Reply, Failure> {
        self.calls += 1;
        match command {
            Command::Echo { value } => reply(value),
            Command::Calls => reply(self.calls),
            Command::Put { key, value } => {
                self.shelf.put(&key, value);
                reply("ok")
            }
            Command::Get { key } => reply(self.shelf.table.get(&key).and_then(Latest::value)),
            Command::Delete { key } => {
                self.shelf.delete_key(&key);
                reply("ok")
            }
            Command::Fill { key, number, bytes } => {
                self.shelf.put(&key, large::item(number, bytes));
                reply("ok")
            }
            Command::Sum { key } => reply(self.shelf.table.get(&key).and_then(large::sum)),
            Command::Refuse { code } => Err(Failure::refused_with(code, "no", &Value::from("detail"))),
            Command::Spin => spin(),
            Command::Nap => nap(),
            Command::PutAndSpin { key, value } => {
                self.shelf.put(&key, value);
                spin()
            }
            Command::Trap => panic!("as requested"),
            Command::PutAndTrap { key, value } => {
                storage::put(key.as_bytes(), b"", b"\x01never seen");
                self.shelf.put(&key, value);
                panic!("after a write")
            }
            Command::Bomb => {
                let mut blocks = Vec::new();
                loop {
                    blocks.push(black_box(vec![1_u8; 1 << 20]));
                }
            }
            Command::Huge { bytes } => {
                let bytes = usize::try_from(bytes.unwrap_or(100_000_000)).unwrap_or(usize::MAX);
                reply(Value::Bytes(vec![0; bytes]))
            }
            Command::Sleepy { ms } => reply(compute(ms)),
            Command::Deep => reply(deep(1)),
            Command::NoCbor => Ok(Reply::from_cbor(vec![0xff; 3])),
            Command::WriteInRead { key } | Command::WriteAndRefuse { key } => {
                storage::put(key.as_bytes(), b"", b"\x01x");
                Err(Failure::refused("after-a-write", "it wrote before"))
            }
            Command::WrongKey { other, .. } => {
                storage::put(other.as_bytes(), b"", b"\x01x");
                reply("ok")
            }
            Command::PeekAtOther { other, .. } => reply(storage::get(other.as_bytes(), b"").is_some()),
            Command::Homeless => {
                storage::put(b"somewhere", b"", b"\x01x");
                reply("ok")
            }
            Command::BigItem { key, bytes } => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                storage::put(key.as_bytes(), b"", &vec![1; bytes]);
                reply("ok")
            }
            Command::Stored { key } => {
                reply(storage::get(key.as_bytes(), b"").map(|version| Value::Bytes(version.value)))
            }
            Command::Chatter { lines } => {
                for line in 0..lines {
                    info!("{line} {}", "x".repeat(1000));
                }
                reply(lines)
            }
            Command::Forge { message } => {
                info!("{message}");
                reply("ok")
            }
            // All other commands go to every partition.
            _ => Err(Failure::UnknownCommand),
        }
    }
}

impl Coverage for Hostile {
    fn handle_coverage(&mut self, command: Command, at: Cursor) -> Result<Values, Failure> {
        match command {
            Command::Keys => self.shelf.table.each(at, |key, _| key.into()),
            Command::EndlessPages => {
                Ok(Values { next: Some(b"again".to_vec()), ..Values::of(["and another"]) })
            }
            Command::SpinEverywhere => spin(),
            Command::SleepyEverywhere { ms } => Ok(Values::of([compute(ms)])),
            Command::NapEverywhere => nap(),
            Command::TrapEverywhere => panic!("as requested"),
            _ => Err(Failure::UnknownCommand),
        }
    }
}

impl Handoff for Hostile {
    fn items(&mut self) -> &mut dyn Items {
        &mut self.shelf
    }
}

impl Transfer for Hostile {
    fn handoff_starting(&mut self, _: Kind, _: &str) -> bool {
        self.moods.in_callback("handoff-starting");
        true
    }

    fn handoff_finished(&mut self, _: Kind, _: &str) {
        self.moods.in_callback("handoff-finished");
    }

    fn handoff_cancelled(&mut self, _: Kind, _: &str) {
        self.moods.in_callback("handoff-cancelled");
    }

    fn handle_handoff_command(&mut self, _: &Request) -> Choice {
        self.moods.in_callback("handoff-command");
        Choice::Handle
    }
}

impl Lifecycle for Hostile {
    fn handle_exit(&mut self, _: &str) {
        self.moods.in_callback("handle-exit");
    }

    fn terminate(&mut self, _: &str) {
        self.moods.in_callback("terminate");
    }
}

/// The callbacks that misbehave, by name, separated by commas.
#[derive(Clone, Debug, Default)]
struct Moods {
    /// Callbacks that sleep for years.
    nap: String,
    /// Callbacks that write to storage, under their own name.
    write: String,
}

impl Moods {
    fn in_callback(&self, callback: &str) {
        let is = |callbacks: &str| callbacks.split(',').any(|name| name == callback);
        if is(&self.write) {
            storage::put(callback.as_bytes(), b"", b"\x01written");
        }
        if is(&self.nap) {
            nap();
        }
    }
}

/// Sleep without computing: `wasi:io/poll` on a clock.
fn nap() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1_000_000_000));
    }
}

fn spin() -> ! {
    let mut rounds = 0_u64;
    loop {
        rounds = black_box(rounds.wrapping_add(1));
    }
}

/// Compute for about this many milliseconds: some hundred thousand rounds of dependent arithmetic take about
/// one. A clock would not work, because the host answers it, and `now_ms` does not change within a call.
fn compute(ms: u64) -> u64 {
    const ROUNDS_PER_MS: u64 = 500_000;
    (0..ms.saturating_mul(ROUNDS_PER_MS))
        .fold(1, |sum, round| black_box(sum ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Recurse without end. The compiler cannot turn this into a loop, because the result is used after the call.
#[allow(unconditional_recursion)] // intended
fn deep(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    deep(depth.wrapping_add(1)).wrapping_add(frame[usize::try_from(depth % 64).unwrap_or(0)])
}

export!(Hostile: Coverage + Handoff + Transfer + Lifecycle);

#[cfg(test)]
mod tests;
