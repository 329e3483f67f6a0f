//! The source of the releases that vnodes run.

use std::pin::Pin;
use std::sync::Arc;

use annulus_core::ids::ModuleUid;

use super::release::Release;

/// The future of [`ModuleSource::filled`]. An error is the reason why the write must not be carried out.
pub type Filled<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// The modules of this node, as its vnodes see them.
pub trait ModuleSource: Send + Sync + 'static {
    /// Return the release that vnodes of this module run now, `None` if it cannot run here (yet).
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>>;

    /// Note that a vnode of this module may have got its first item since it started. The write is answered after
    /// the returned future.
    fn filled(&self, _module: ModuleUid) -> Filled<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Return true if a former process of this node may have had items of a module with several replicas.
    fn had_items(&self, _module: ModuleUid) -> bool {
        false
    }
}
