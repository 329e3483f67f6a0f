//! Who cannot run which module: every node tells all others what it cannot serve, so that nobody
//! is sent to it (what riak_core's node watcher is for services).
//!
//! A node cannot serve a module of which it runs no release, because the current one's component
//! cannot be had, does not compile or does not start there. (One that still runs the release before
//! does serve, and `modules` shows its digest.) The whole of it is told at every change, and to
//! every peer that connects, which may have started anew; until a peer has answered it is told
//! again. The log is not asked: this is one node's word about itself, and only for choosing.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use annulus_core::ids::{BootId, ModuleUid, NodeUid};
use annulus_core::state::{Member, Module};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Modules;
use annulus_core::codec;
use annulus_transport::{Lane, PeerAddr, PeerIdentity, Request, kind};

/// Longest that one peer may take to hear it.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// After this who has not answered is told again.
const AGAIN: Duration = Duration::from_secs(2);

/// Longest reason that is passed on, in bytes, and how many modules are: together well under
/// what a control message may have.
const MAX_REASON: usize = 300;
const MAX_MODULES: usize = 256;

/// Peers that speak this version of the protocol listen to it.
const LISTENS: u32 = 2;

/// One module that a node cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unable {
    module: ModuleUid,
    version: u64,
    reason: String,
}

/// All that a node cannot serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    /// Counts up within a run of the node: a late word is no news.
    number: u64,
    unable: Vec<Unable>,
}

/// What the others have said.
#[derive(Default)]
pub(super) struct Words {
    by_node: HashMap<NodeUid, (BootId, Word)>,
}

impl Words {
    fn take(&mut self, node: NodeUid, boot: BootId, word: Word) {
        let known = self.by_node.get(&node);
        if known.is_none_or(|(run, known)| *run != boot || known.number <= word.number) {
            self.by_node.insert(node, (boot, word));
        }
    }

    fn of(&self, node: NodeUid) -> &[Unable] {
        self.by_node.get(&node).map_or(&[], |(_, word)| &word.unable)
    }
}

impl Modules {
    /// Why a member cannot serve the current release of a module; `None`: it can, as far as this
    /// node knows.
    pub fn unable(&self, member: &Member, module: &Module) -> Option<String> {
        let find = |unable: &[Unable]| {
            let found =
                unable.iter().find(|one| one.module == module.uid && one.version == module.current.version);
            found.map(|one| one.reason.clone())
        };
        if member.uid == self.inner.cluster.uid() {
            return find(&self.unable_here());
        }
        find(self.inner.words.lock().of(member.uid))
    }

    /// There is a connection to this node: it may have started anew, and know nothing.
    pub fn connected(&self, peer: NodeUid) {
        let _ = self.inner.connected.send(peer);
    }

    /// Answers a control request of kind `MODULES_UNABLE`.
    pub fn heard_unable(&self, request: Request) {
        let PeerIdentity::Node { uid, boot } = request.from else { return };
        match codec::decode::<Word>(&request.payload) {
            Ok(mut word) => {
                word.unable.truncate(MAX_MODULES);
                self.inner.words.lock().take(uid, boot, word);
                request.responder.send(Bytes::new());
            }
            Err(error) => tracing::warn!(peer = %uid, %error, "what a peer cannot serve cannot be read"),
        }
    }

    fn unable_here(&self) -> Vec<Unable> {
        let releases = self.inner.releases.load();
        let running = self.inner.running.borrow();
        let mut unable: Vec<Unable> = running
            .iter()
            .filter(|(module, _)| !releases.contains_key(module))
            .filter_map(|(module, running)| {
                let (version, reason) = running.failed.clone()?;
                let end = reason.floor_char_boundary(MAX_REASON);
                Some(Unable { module: *module, version, reason: reason[..end].to_owned() })
            })
            .collect();
        unable.sort_by_key(|one| one.module);
        unable.truncate(MAX_MODULES);
        unable
    }

    /// For as long as the node runs.
    pub(super) async fn keep_telling(self, mut connected: mpsc::UnboundedReceiver<NodeUid>) {
        let mut running = self.inner.running.subscribe();
        let mut word = Word::default();
        let mut told = BTreeSet::new();
        loop {
            running.borrow_and_update();
            let unable = self.unable_here();
            if unable != word.unable {
                word = Word { number: word.number + 1, unable };
                told.clear();
            }
            let all_told = self.tell(&word, &mut told).await;
            tokio::select! {
                changed = running.changed() => if changed.is_err() { return },
                peer = connected.recv() => match peer {
                    Some(peer) => drop(told.remove(&peer)),
                    None => return,
                },
                () = sleep(AGAIN), if !all_told => {}
            }
            while let Ok(peer) = connected.try_recv() {
                told.remove(&peer);
            }
        }
    }

    /// Tells those who are connected and do not know it; whether all of them do now.
    async fn tell(&self, word: &Word, told: &mut BTreeSet<NodeUid>) -> bool {
        let payload = match codec::encode(word) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => {
                tracing::error!(%error, "what this node cannot serve cannot be written");
                return true;
            }
        };
        let view = self.inner.cluster.view();
        let transport = &self.inner.transport;
        let listens = |peer: &PeerAddr| {
            let speaks = transport.peer_speaks(peer.uid);
            transport.is_up(peer.uid) && speaks.is_some_and(|speaks| speaks.protocol.newest >= LISTENS)
        };
        let others = view.state.live_members().filter(|member| member.id != view.me);
        let todo = others.filter_map(|member| view.peer(member.id));
        let todo: Vec<_> = todo.filter(|peer| !told.contains(&peer.uid) && listens(peer)).collect();
        let deadline = Instant::now() + TELL_LIMIT;
        let calls = todo
            .iter()
            .map(|peer| transport.call(peer, Lane::Control, kind::MODULES_UNABLE, payload.clone(), deadline));
        let answers = join_all(calls).await;
        let heard = todo.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
        told.extend(heard.map(|(peer, _)| peer.uid));
        answers.iter().all(Result::is_ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(number: u64, module: u64) -> Word {
        let unable = Unable { module: ModuleUid(module), version: 1, reason: "why".to_owned() };
        Word { number, unable: vec![unable] }
    }

    #[test]
    fn a_late_word_is_no_news_and_a_new_run_starts_anew() {
        let node = NodeUid([1; 16]);
        let (first, second) = (BootId([1; 16]), BootId([2; 16]));
        let mut words = Words::default();
        words.take(node, first, word(2, 7));
        words.take(node, first, word(1, 8));
        assert_eq!(words.of(node)[0].module, ModuleUid(7));
        words.take(node, second, Word::default());
        assert!(words.of(node).is_empty());
        assert!(words.of(NodeUid([9; 16])).is_empty());
    }
}
