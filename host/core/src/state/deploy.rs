//! Modules in the log: deploy, roll back, undeploy.

use crate::ids::ModuleUid;

use super::{ClusterState, Module, Outcome, Refusal, Release, StorageKind};

/// CBOR of the empty map, which `init` gets where a deploy says nothing.
const EMPTY_MAP: &[u8] = &[0xa0];

/// What a deploy says of the module's settings; `None` keeps, or takes the default at first.
pub(super) struct Settings<'a> {
    pub n: Option<u8>,
    pub r: Option<u8>,
    pub w: Option<u8>,
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
        let old = self.module_by_name(name);
        let version = old.map_or(0, |module| module.current.version);
        if version != base_version {
            return Err(Refusal::DeployRaced(name.into()));
        }
        let current = Release { version: version + 1, ..release.clone() };
        let module = match old {
            Some(old) => Module {
                n: settings.n.unwrap_or(old.n),
                r: settings.r.unwrap_or(old.r),
                w: settings.w.unwrap_or(old.w),
                storage: settings.storage.unwrap_or(old.storage),
                config: settings.config.map_or_else(|| old.config.clone(), <[u8]>::to_vec),
                current,
                previous: Some(old.current.clone()),
                changed: index,
                ..old.clone()
            },
            None => {
                // Majorities where nobody says: reads see acknowledged writes (PROTOCOL.md, section 7).
                let n = settings.n.unwrap_or(1);
                Module {
                    uid: ModuleUid(index),
                    name: name.into(),
                    n,
                    r: settings.r.unwrap_or(n / 2 + 1),
                    w: settings.w.unwrap_or(n / 2 + 1),
                    storage: settings.storage.unwrap_or_default(),
                    config: settings.config.unwrap_or(EMPTY_MAP).to_vec(),
                    current,
                    previous: None,
                    changed: index,
                }
            }
        };
        self.check_quorums(&module)?;
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

    pub(super) fn rollback(&mut self, index: u64, name: &str) -> Result<Outcome, Refusal> {
        let module = self.modules.values_mut().find(|module| module.name == name);
        let module = module.ok_or_else(|| Refusal::NoModule(name.into()))?;
        let previous = module.previous.clone().ok_or_else(|| Refusal::NoPrevious(name.into()))?;
        let version = module.current.version + 1;
        module.previous = Some(std::mem::replace(&mut module.current, Release { version, ..previous }));
        module.changed = index;
        Ok(Outcome::Deployed(module.uid, version))
    }

    pub(super) fn undeploy(&mut self, name: &str) -> Result<Outcome, Refusal> {
        let uid = self.module_by_name(name).ok_or_else(|| Refusal::NoModule(name.into()))?.uid;
        self.modules.remove(&uid);
        Ok(Outcome::Done)
    }
}
