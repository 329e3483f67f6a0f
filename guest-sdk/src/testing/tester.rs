//! One vnode and its host; a test calls commands by name, as a client does.

use std::cell::RefCell;

use super::world::{Reach, World, within};
use crate::reply::{from_cbor, to_cbor};
use crate::{
    Budget, Config, Conflict, Coverage, Cursor, Effect, Failure, Handoff, Item, Level, Merge, ModuleInfo,
    Outcome, Partition, Rejection, Request, Route, Value, Version, Vnode, host, rt,
};

/// Budget of a page: small, so that a test with a few items needs several pages.
const PAGE: Budget = Budget { items: 3, bytes: 4096 };

/// A vnode under test. Arguments are decoded as in a component, and the host's rules apply: a command that
/// breaks one fails with `refused` and code `doomed`, and its writes to storage are dropped.
#[derive(Debug)]
pub struct Tester<V> {
    vnode: RefCell<V>,
    world: RefCell<World>,
    partition: Partition,
    info: ModuleInfo,
}

impl<V: Vnode> Tester<V> {
    /// Start a vnode of partition 0 of 64, without settings.
    ///
    /// # Panics
    /// If its `init` fails.
    #[must_use]
    pub fn start() -> Self {
        match Self::start_with(Partition { id: 0, ring_size: 64 }, Config::default()) {
            Ok(tester) => tester,
            Err(reason) => panic!("init fails: {reason}"),
        }
    }

    /// Start a vnode of the given partition with settings.
    ///
    /// # Errors
    /// The error of `init`, or a message that it writes to storage.
    pub fn start_with(partition: Partition, config: Config) -> Result<Self, String> {
        let world = RefCell::new(World::new());
        let config = config.encode()?;
        world.borrow_mut().may_write = false;
        let vnode = within(&world, || rt::init::<V>(partition, &config))?;
        if let Some(reason) = world.borrow_mut().end_call(true) {
            return Err(format!("init: {reason}"));
        }
        Ok(Self { vnode: RefCell::new(vnode), world, partition, info: rt::describe::<V>() })
    }

    /// Return the description of the module.
    #[must_use]
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// Call a command with its arguments in the order of the description.
    ///
    /// # Errors
    /// The command's own failure; `refused` with code `doomed` if it broke a rule of the host.
    pub fn call(&self, command: &str, args: &[Value]) -> Result<Value, Failure> {
        self.call_named(command, &self.named(command, args)?)
    }

    /// Call a command with named arguments.
    ///
    /// # Errors
    /// As for [`call`](Tester::call).
    pub fn call_named(&self, command: &str, args: &[(&str, Value)]) -> Result<Value, Failure> {
        let request = self.request(command, args)?;
        let reply = self.run(Some(&request), |vnode| rt::handle_command(vnode, &request))?;
        from_cbor(&reply).map_err(|error| Failure::refused("reply-is-no-cbor", error))
    }

    /// Return the lines logged so far.
    #[must_use]
    pub fn logs(&self) -> Vec<(Level, String)> {
        self.world.borrow().logs.clone()
    }

    /// Set the format that the host asks the guest to write from now on.
    pub fn set_write_format(&self, format: u32) {
        self.world.borrow_mut().write_format = format;
    }

    /// Access the vnode directly, bypassing its commands.
    pub fn with<R>(&self, look: impl FnOnce(&mut V) -> R) -> R {
        within(&self.world, || look(&mut self.vnode.borrow_mut()))
    }

    /// Return the items in host storage, including tombstones.
    #[must_use]
    pub fn stored(&self) -> Vec<Item> {
        let world = self.world.borrow();
        let items = world.items.iter();
        items
            .map(|((key, sort), Version { value, deleted })| Item {
                key: key.clone(),
                sort: sort.clone(),
                value: value.clone(),
                deleted: *deleted,
            })
            .collect()
    }

    fn named<'a>(&'a self, command: &str, args: &[Value]) -> Result<Vec<(&'a str, Value)>, Failure> {
        let Some(described) = self.info.commands.iter().find(|known| known.name == command) else {
            return Err(Failure::UnknownCommand);
        };
        if args.len() > described.params.len() {
            let takes = described.params.len();
            return Err(Failure::BadArguments(format!("{} arguments, {command} takes {takes}", args.len())));
        }
        Ok(described.params.iter().map(|param| param.name.as_str()).zip(args.iter().cloned()).collect())
    }

    fn request(&self, command: &str, args: &[(&str, Value)]) -> Result<Request, Failure> {
        let key =
            match self.info.commands.iter().find(|known| known.name == command).map(|known| &known.route) {
                Some(Route::ByParam(param)) => {
                    args.iter().find(|(name, _)| name == param).and_then(|(_, value)| routing_key(value))
                }
                _ => None,
            };
        let args = args.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect();
        let args = to_cbor(&Value::Map(args)).map_err(Failure::BadArguments)?;
        Ok(Request { command: command.to_owned(), key, args })
    }

    /// Run one call under the rules of the command that `request` names; without a request, under those of a
    /// callback that may write and see all items.
    fn run<R>(
        &self,
        request: Option<&Request>,
        call: impl FnOnce(&mut V) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let described =
            request.and_then(|request| self.info.commands.iter().find(|known| known.name == request.command));
        {
            let mut world = self.world.borrow_mut();
            world.request += 1;
            world.may_write = described.is_none_or(|command| command.effect != Effect::Read);
            world.reach = match described.map(|command| &command.route) {
                Some(Route::Anywhere) => Reach::Nothing,
                Some(Route::ByParam(_)) => {
                    request.and_then(|request| request.key.clone()).map_or(Reach::Nothing, Reach::Key)
                }
                Some(Route::Everywhere) | None => Reach::All,
            };
        }
        let result = within(&self.world, || {
            host::set_partition(self.partition);
            call(&mut self.vnode.borrow_mut())
        });
        match self.world.borrow_mut().end_call(result.is_ok()) {
            Some(reason) => Err(Failure::refused("doomed", reason)),
            None => result,
        }
    }
}

impl<V: Coverage> Tester<V> {
    /// Call an `everywhere` command on this partition, page by page, and return all values.
    ///
    /// # Errors
    /// As for [`call`](Tester::call).
    ///
    /// # Panics
    /// If a page ends with the token that it started from: the pages would never end.
    pub fn coverage(&self, command: &str, args: &[Value]) -> Result<Vec<Value>, Failure> {
        self.pages(command, args).map(|(values, _)| values)
    }

    /// Call an `everywhere` command that writes, and return the keys that it reports as touched.
    ///
    /// # Errors
    /// As for [`coverage`](Tester::coverage).
    pub fn touched(&self, command: &str, args: &[Value]) -> Result<Vec<Vec<u8>>, Failure> {
        self.pages(command, args).map(|(_, touched)| touched)
    }

    fn pages(&self, command: &str, args: &[Value]) -> Result<(Vec<Value>, Vec<Vec<u8>>), Failure> {
        let request = self.request(command, &self.named(command, args)?)?;
        let (mut values, mut touched, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let at = Cursor { after: after.clone(), limit: PAGE };
            let page = self.run(Some(&request), |vnode| rt::handle_coverage(vnode, &request, at))?;
            for value in page.values {
                let value = from_cbor(&value);
                values.push(value.map_err(|error| Failure::refused("value-is-no-cbor", error))?);
            }
            touched.extend(page.touched);
            if page.next.is_none() {
                return Ok((values, touched));
            }
            assert!(page.next != after, "a page ends with the token that it started from");
            after = page.next;
        }
    }
}

impl<V: Handoff> Tester<V> {
    /// Return all items, as a handoff sends them.
    ///
    /// # Panics
    /// If a page ends with the token that it started from: the pages would never end.
    #[must_use]
    pub fn fold(&self) -> Vec<Item> {
        let (mut items, mut after) = (Vec::new(), None);
        loop {
            let page = self.with(|vnode| vnode.items().fold(after.as_deref(), PAGE));
            items.extend(page.items);
            if page.next.is_none() {
                return items;
            }
            assert!(page.next != after, "a page ends with the token that it started from");
            after = page.next;
        }
    }

    /// Return the items of one key.
    #[must_use]
    pub fn items_of(&self, key: &str) -> Vec<Item> {
        self.with(|vnode| vnode.items().encode_handoff_items(key.as_bytes()))
    }

    /// Pass items to the vnode, as a handoff, a replica or a backup does.
    pub fn receive(&self, items: Vec<Item>) -> Vec<Rejection> {
        self.with(|vnode| rt::handle_handoff_data(vnode, items))
    }
}

impl<V: Merge> Tester<V> {
    /// Write items to the vnode's storage, merging each with an existing one. Return the reasons of those
    /// that were rejected.
    ///
    /// # Panics
    /// If `merge` calls a host function.
    pub fn receive_stored(&self, items: Vec<Item>) -> Vec<String> {
        let mut rejected = Vec::new();
        for Item { key, sort, value, deleted } in items {
            let place = (key.clone(), sort.clone());
            let incoming = Version { value, deleted };
            let local = self.world.borrow().items.get(&place).cloned();
            let outcome = match local {
                Some(local) if local == incoming => Outcome::Local,
                Some(local) => {
                    rt::merge::<V>(vec![Conflict { key, sort, local, incoming: incoming.clone() }])
                        .pop()
                        .expect("one outcome for each conflict")
                }
                None => Outcome::Incoming,
            };
            let version = match outcome {
                Outcome::Local => continue,
                Outcome::Incoming => incoming,
                Outcome::Merged(version) => version,
                Outcome::Rejected(reason) => {
                    rejected.push(reason);
                    continue;
                }
            };
            self.world.borrow_mut().items.insert(place, version);
        }
        rejected
    }
}

/// Return the routing key as the host computes it: the UTF-8 of a text, bytes unchanged, the decimal digits of
/// a number.
fn routing_key(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Text(text) => Some(text.clone().into_bytes()),
        Value::Bytes(bytes) => Some(bytes.clone()),
        Value::Integer(number) => Some(i128::from(*number).to_string().into_bytes()),
        _ => None,
    }
}
