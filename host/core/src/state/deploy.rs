//! Modules in the log: deploy, roll back, undeploy.

use crate::ids::ModuleUid;

use super::{
    CALL_MS, ClusterState, Module, ModuleBase, OLDER_RELEASES, Outcome, Refusal, Release, StorageKind,
};

/// The empty map as CBOR, for the `init` of a module without a config.
const EMPTY_MAP: &[u8] = &[0xa0];

/// The settings of a deploy; `None` keeps the module's, or uses the default for a new module.
pub(super) struct Settings<'a> {
    pub n: Option<u8>,
    pub r: Option<u8>,
    pub w: Option<u8>,
    pub sloppy: Option<bool>,
    pub storage: Option<StorageKind>,
    pub config: Option<&'a [u8]>,
}

impl ClusterState {
    pub(super) fn deploy(
        &mut self,
        index: u64,
        name: &str,
        settings: &Settings<'_>,
        release: &Release,
        base_version: u64,
    ) -> Result<Outcome, Refusal> {
        if name.is_empty() {
            return Err(Refusal::BadSetting("a module needs a name".into()));
        }
        if let Some(ms) = release.call_ms.filter(|ms| !CALL_MS.contains(ms)) {
            let (least, most) = CALL_MS.into_inner();
            return Err(Refusal::BadSetting(format!("a call limit is from {least} to {most} ms, not {ms}")));
        }
        let old = self.module_by_name(name);
        let version = old.map_or(0, |module| module.current.version);
        if version != base_version {
            return Err(Refusal::DeployRaced(name.into()));
        }
        if let (Some(old), Some(storage)) = (old, settings.storage)
            && old.storage != storage
            && self.level >= 5
        {
            return Err(Refusal::BadSetting(format!(
                "the items of {name} are {}; undeploy it, or deploy under another name, to change that",
                old.storage.in_words()
            )));
        }
        let mut current = Release { version: version + 1, config: None, ..release.clone() };
        let kept = || old.map_or_else(|| EMPTY_MAP.to_vec(), |old| old.config.clone());
        let config = settings.config.map_or_else(kept, <[u8]>::to_vec);
        let keeps_settings = self.level >= 3;
        if keeps_settings {
            current.config = Some(config.clone());
        }
        let mut module = match old {
            Some(old) => Module {
                n: settings.n.unwrap_or(old.n),
                r: settings.r.unwrap_or(old.r),
                w: settings.w.unwrap_or(old.w),
                sloppy: settings.sloppy.unwrap_or(old.sloppy),
                had_hints: old.had_hints || old.sloppy,
                storage: settings.storage.unwrap_or(old.storage),
                ..old.clone()
            },
            None => {
                // The defaults are majorities, so that reads see acknowledged writes (PROTOCOL.md, section
                // 7).
                let n = settings.n.unwrap_or(1);
                Module {
                    uid: ModuleUid(index),
                    name: name.into(),
                    n,
                    r: settings.r.unwrap_or(n / 2 + 1),
                    w: settings.w.unwrap_or(n / 2 + 1),
                    sloppy: settings.sloppy.unwrap_or(false),
                    had_hints: false,
                    storage: settings.storage.unwrap_or_default(),
                    config: EMPTY_MAP.to_vec(),
                    current: current.clone(),
                    previous: None,
                    older: Vec::new(),
                    changed: index,
                }
            }
        };
        if old.is_some() {
            module.follow(current, keeps_settings);
        }
        (module.config, module.changed) = (config, index);
        self.check_quorums(&module)?;
        self.check_replicas(&module, old.map(|old| old.n))?;
        let outcome = Outcome::Deployed(module.uid, module.current.version);
        self.modules.insert(module.uid, module);
        Ok(outcome)
    }

    fn check_quorums(&self, module: &Module) -> Result<(), Refusal> {
        let Module { n, r, w, .. } = *module;
        if !(1..=self.width).contains(&n) {
            return Err(Refusal::BadSetting(format!(
                "n is from 1 to the ring's width, which is {}, not {n}",
                self.width
            )));
        }
        for (what, count) in [("r", r), ("w", w)] {
            if !(1..=n).contains(&count) {
                return Err(Refusal::BadSetting(format!("{what} is from 1 to n, which is {n}, not {count}")));
            }
        }
        Ok(())
    }

    /// Check that a module may have its number of replicas. While a partition moves, its successors would have to
    /// get the items of a module that was not there when the move began.
    fn check_replicas(&self, module: &Module, before: Option<u8>) -> Result<(), Refusal> {
        let Module { name, n, .. } = module;
        if let Some(before) = before.filter(|before| before != n && (*before).max(*n) > 1) {
            return Err(Refusal::BadSetting(format!(
                "{name} has n={before}, which cannot change yet: undeploy it, or deploy under another name"
            )));
        }
        if *n == 1 || before.is_some() {
            return Ok(());
        }
        if let Some((id, _)) = self.ring.transfers().next() {
            return Err(Refusal::BadSetting(format!(
                "n={n}: partition {} is moving; deploy again once `annulus transfers` is empty",
                id.0
            )));
        }
        Ok(())
    }

    pub(super) fn rollback(
        &mut self,
        index: u64,
        name: &str,
        base: Option<ModuleBase>,
        to: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        let keeps_settings = self.level >= 3;
        let uid = self.named(name, base)?;
        let module = self.modules.get_mut(&uid).ok_or_else(|| Refusal::NoModule(name.into()))?;
        let target = match to {
            None => module.previous.clone().ok_or_else(|| Refusal::NoPrevious(name.into()))?,
            Some(version) => {
                let mut releases = module.releases().skip(1);
                let missing = || Refusal::NoRelease { name: name.into(), version };
                releases.find(|release| release.version == version).cloned().ok_or_else(missing)?
            }
        };
        let version = module.current.version + 1;
        // A release without settings uses the module's.
        let config = target.config.clone().unwrap_or_else(|| module.config.clone());
        module.follow(Release { version, ..target }, keeps_settings);
        (module.config, module.changed) = (config, index);
        Ok(Outcome::Deployed(module.uid, version))
    }

    pub(super) fn undeploy(&mut self, name: &str, base: Option<ModuleBase>) -> Result<Outcome, Refusal> {
        let uid = self.named(name, base)?;
        self.modules.remove(&uid);
        Ok(Outcome::Done)
    }

    /// Return the module of a name, if it is the one that the command was made for.
    fn named(&self, name: &str, base: Option<ModuleBase>) -> Result<ModuleUid, Refusal> {
        let module = self.module_by_name(name).ok_or_else(|| Refusal::NoModule(name.into()))?;
        if base.is_some_and(|base| base != module.base()) {
            return Err(Refusal::ModuleChanged(name.into()));
        }
        Ok(module.uid)
    }
}

impl Module {
    /// Make a release current and the current one previous. The latter keeps its settings (`keeps_settings`).
    fn follow(&mut self, release: Release, keeps_settings: bool) {
        let mut before = std::mem::replace(&mut self.current, release);
        if keeps_settings {
            before.config.get_or_insert_with(|| self.config.clone());
            if let Some(older) = self.previous.take() {
                self.older.insert(0, older);
                self.older.truncate(OLDER_RELEASES);
            }
        }
        self.previous = Some(before);
    }
}
