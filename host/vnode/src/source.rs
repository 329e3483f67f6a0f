//! The source of the releases that vnodes run.

use std::pin::Pin;
use std::sync::Arc;

use annulus_core::ids::ModuleUid;

use super::release::Release;

/// The future of [`ModuleSource::filled`].
pub type Filled<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// The modules of this node, as its vnodes see them.
pub trait ModuleSource: Send + Sync + 'static {
    /// Return the release that vnodes of this module run now, `None` if it cannot run here (yet).
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>>;

    /// Note that a vnode of this module may have got its first item since it started. The write is answered after
    /// the returned future.
    fn filled(&self, _module: ModuleUid) -> Filled<'_> {
        Box::pin(std::future::ready(()))
    }
}
