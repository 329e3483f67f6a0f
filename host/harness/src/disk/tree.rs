//! Files and directories: the current contents, and those that a crash may leave.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};
use std::time::SystemTime;

use annulus_data_dir::Entry;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::engine::Stored;

/// Identifies a file, a directory or a database independently of its name. 0 is the root.
pub(super) type NodeId = u64;

#[derive(Clone)]
pub(super) enum Node {
    File(File),
    Dir(Dir),
    Store(Stored),
}

impl Node {
    /// Make the move of a node durable here, if this is the directory to which the node was moved.
    fn settle_move(&mut self, moved: NodeId) {
        if let Self::Dir(dir) = self
            && let Some(at) = dir.pending.iter().position(|change| change.node() == Some(moved))
        {
            dir.pending.remove(at).apply(&mut dir.durable);
        }
    }
}

#[derive(Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<NodeId, Node>,
    next: NodeId,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: BTreeMap::from([(0, Node::Dir(Dir::default()))]), next: 1 }
    }
}

pub(super) fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn name_of(path: &Path) -> io::Result<OsString> {
    path.file_name().map(OsStr::to_owned).ok_or_else(not_found)
}

impl Tree {
    pub(super) fn find(&self, path: &Path) -> Option<NodeId> {
        path.components().try_fold(0, |at, part| match part {
            Component::Normal(name) => match self.nodes.get(&at)? {
                Node::Dir(dir) => dir.now.get(name).copied(),
                _ => None,
            },
            _ => Some(at),
        })
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        match self.find(path).and_then(|id| self.nodes.get_mut(&id)) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(not_found()),
        }
    }

    fn parent(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dir(path.parent().unwrap_or(Path::new("")))
    }

    pub(super) fn file(&mut self, id: NodeId) -> io::Result<&mut File> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(not_found()),
        }
    }

    pub(super) fn store(&mut self, id: NodeId) -> io::Result<&mut Stored> {
        match self.nodes.get_mut(&id) {
            Some(Node::Store(store)) => Ok(store),
            _ => Err(not_found()),
        }
    }

    /// Add a file, a directory or a database to an existing directory.
    pub(super) fn add(&mut self, path: &Path, node: Node) -> io::Result<NodeId> {
        let (name, id) = (name_of(path)?, self.next);
        self.parent(path)?.change(Change::Put { name, node: id });
        self.nodes.insert(id, node);
        self.next += 1;
        Ok(id)
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<NodeId> {
        if let Some(id) = self.find(path) {
            return Ok(id);
        }
        self.create_dir(path.parent().unwrap_or(Path::new("")))?;
        self.add(path, Node::Dir(Dir::default()))
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let name = name_of(path)?;
        self.find(path).ok_or_else(not_found)?;
        self.parent(path)?.change(Change::Take { name, moved: None });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.find(from).ok_or_else(not_found)?;
        let (name, new) = (name_of(from)?, name_of(to)?);
        if from.parent() == to.parent() {
            self.parent(from)?.change(Change::Rename { from: name, to: new, node });
        } else {
            self.parent(to)?.change(Change::Put { name: new, node });
            self.parent(from)?.change(Change::Take { name, moved: Some(node) });
        }
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let Some(Node::Dir(dir)) = self.find(path).and_then(|id| self.nodes.get(&id)) else {
            return Err(not_found());
        };
        let modified = |id| match self.nodes.get(id) {
            Some(Node::File(file)) => file.modified,
            _ => None,
        };
        let entry = |(name, id): (&OsString, _)| Entry { name: name.clone(), modified: modified(id) };
        Ok(dir.now.iter().map(entry).collect())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let dir = self.dir(path)?;
        dir.durable = dir.now.clone();
        let done = std::mem::take(&mut dir.pending);
        // File systems record a move between directories in both at once.
        for change in done {
            if let Change::Take { moved: Some(node), .. } = change {
                self.nodes.values_mut().for_each(|other| other.settle_move(node));
            }
        }
        Ok(())
    }

    /// Remove a part of the databases in a directory.
    pub(super) fn damage(&mut self, path: &Path) -> io::Result<()> {
        let id = self.find(path).ok_or_else(not_found)?;
        for id in self.below(id) {
            if let Some(Node::Store(store)) = self.nodes.get_mut(&id) {
                store.damage();
            }
        }
        Ok(())
    }

    /// Return all nodes that have a name in or below this one.
    fn below(&self, from: NodeId) -> BTreeSet<NodeId> {
        let (mut found, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(id) = todo.pop() {
            if found.insert(id)
                && let Some(Node::Dir(dir)) = self.nodes.get(&id)
            {
                // Include names that a loss of power may bring back.
                let changed = dir.pending.iter().filter_map(Change::node);
                todo.extend(dir.now.values().chain(dir.durable.values()).copied().chain(changed));
            }
        }
        found
    }

    fn forget_nameless(&mut self) {
        let named = self.below(0);
        self.nodes.retain(|id, _| named.contains(id));
    }

    /// Apply the end of a process.
    pub(super) fn kill(&mut self, choices: &mut SmallRng) {
        self.forget_nameless();
        for node in self.nodes.values_mut() {
            if let Node::Store(store) = node {
                store.kill(choices);
            }
        }
    }

    /// Apply a loss of power.
    pub(super) fn lose_power(&mut self, choices: &mut SmallRng) {
        self.kill(choices);
        let mut moved = Vec::new();
        for (id, node) in &mut self.nodes {
            match node {
                Node::File(file) => file.lose_power(choices),
                Node::Dir(dir) => moved.extend(dir.lose_power(choices).into_iter().map(|lost| (*id, lost))),
                Node::Store(store) => store.lose_power(choices),
            }
        }
        // A node that was moved to another directory keeps at least one of its two names.
        for (dir, (name, node)) in moved {
            let mut dirs = self.nodes.values();
            let is_there =
                dirs.any(|dir| matches!(dir, Node::Dir(dir) if dir.durable.values().any(|id| *id == node)));
            if let (false, Some(Node::Dir(dir))) = (is_there, self.nodes.get_mut(&dir)) {
                dir.durable.insert(name, node);
            }
        }
        for node in self.nodes.values_mut() {
            if let Node::Dir(dir) = node {
                dir.now = dir.durable.clone();
            }
        }
        self.forget_nameless();
    }

    /// Return a copy of the current contents, all of it durable.
    pub(super) fn copy(&self) -> Self {
        let mut copy = self.clone();
        for node in copy.nodes.values_mut() {
            match node {
                Node::File(file) => file.sync(),
                Node::Dir(dir) => {
                    dir.durable = dir.now.clone();
                    dir.pending.clear();
                }
                Node::Store(store) => store.settle(),
            }
        }
        copy.forget_nameless();
        copy
    }
}

/// Draw how many of the unsynced changes remain. None and all of them are more frequent than in a uniform draw.
pub(super) fn prefix(choices: &mut SmallRng, least: usize, all: usize) -> usize {
    match choices.random_range(0..3) {
        0 => least,
        1 => all,
        _ => choices.random_range(least..=all),
    }
}

/// Contents of a file.
#[derive(Clone, Default)]
pub(super) struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync.
    pending: Vec<Write>,
    modified: Option<SystemTime>,
}

#[derive(Clone)]
enum Write {
    Empty,
    At(usize, Vec<u8>),
}

fn write(contents: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    contents.resize(contents.len().max(at + bytes.len()), 0);
    contents[at..at + bytes.len()].copy_from_slice(bytes);
}

impl File {
    pub(super) fn read(&self) -> &[u8] {
        &self.now
    }

    pub(super) fn empty(&mut self) {
        self.now.clear();
        self.did(Write::Empty);
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        write(&mut self.now, at, bytes);
        self.did(Write::At(at, bytes.to_vec()));
    }

    fn did(&mut self, what: Write) {
        self.pending.push(what);
        self.modified = Some(annulus_ground::wall());
    }

    pub(super) fn sync(&mut self) {
        self.durable = self.now.clone();
        self.pending.clear();
    }

    fn lose_power(&mut self, choices: &mut SmallRng) {
        let kept = prefix(choices, 0, self.pending.len());
        for (at, done) in self.pending.drain(..).enumerate().take(kept + 1) {
            match done {
                Write::Empty if at < kept => self.durable.clear(),
                Write::Empty => {}
                Write::At(place, bytes) => {
                    let whole = if at < kept { bytes.len() } else { choices.random_range(0..=bytes.len()) };
                    write(&mut self.durable, place, &bytes[..whole]);
                }
            }
        }
        self.now = self.durable.clone();
    }
}

/// Entries of a directory.
#[derive(Clone, Default)]
pub(super) struct Dir {
    now: BTreeMap<OsString, NodeId>,
    durable: BTreeMap<OsString, NodeId>,
    /// Changes since the last sync.
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Put {
        name: OsString,
        node: NodeId,
    },
    /// Remove an entry, or move it to another directory.
    Take {
        name: OsString,
        moved: Option<NodeId>,
    },
    Rename {
        from: OsString,
        to: OsString,
        node: NodeId,
    },
}

impl Change {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Put { node, .. } | Self::Rename { node, .. } => Some(*node),
            Self::Take { .. } => None,
        }
    }

    fn apply(&self, names: &mut BTreeMap<OsString, NodeId>) {
        match self {
            Self::Put { name, node } => drop(names.insert(name.clone(), *node)),
            Self::Take { name, .. } => drop(names.remove(name)),
            Self::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Dir {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    /// Apply a loss of power. Return the entries that were moved away.
    fn lose_power(&mut self, choices: &mut SmallRng) -> Vec<(OsString, NodeId)> {
        let kept = prefix(choices, 0, self.pending.len());
        let mut moved = Vec::new();
        for change in self.pending.drain(..).take(kept) {
            change.apply(&mut self.durable);
            if let Change::Take { name, moved: Some(node) } = change {
                moved.push((name, node));
            }
        }
        moved
    }
}
