//! The places of operators' connections. When all are taken, the one that has been idle longest gives
//! its own up: it is mostly that of a process that has ended without a word, while who comes now has
//! something to say.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::bulk::TokenInner;
use super::close::Close;
use super::limits::MAX_ADMINS;
use super::wire::Connection;

/// All places of one node.
#[derive(Default)]
pub(super) struct Admins {
    taken: Mutex<Vec<Arc<Place>>>,
}

struct Place {
    connection: Connection,
    /// Told apart by its strong count: one more for each stream that is open.
    in_use: Arc<()>,
    /// When the last stream ended; at first, when the connection came.
    idle_since: Mutex<Instant>,
}

impl Place {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.in_use) == 1
    }
}

/// A taken place. Free again when this is dropped.
pub(super) struct AdminPlace {
    place: Arc<Place>,
    of: Arc<Admins>,
}

impl Admins {
    /// A place for a connection. If all are taken, the connection that has been idle longest is closed for
    /// it; refused, with the reason, only if each has a request under way.
    pub(super) fn enter(self: &Arc<Self>, connection: &Connection) -> Result<AdminPlace, (Close, String)> {
        let place = Arc::new(Place {
            connection: connection.clone(),
            in_use: Arc::default(),
            idle_since: Mutex::new(Instant::now()),
        });
        let mut taken = self.taken.lock();
        if taken.len() >= MAX_ADMINS {
            let idle = taken.iter().enumerate().filter(|(_, place)| place.is_idle());
            let Some((longest, _)) = idle.min_by_key(|(_, place)| *place.idle_since.lock()) else {
                let reason = format!(
                    "{MAX_ADMINS} operators have a request under way here, which is as many as are served at a \
                     time: try again when one of them is done"
                );
                return Err((Close::Busy, reason));
            };
            let reason = "another operator came, and this connection had been idle longest";
            Close::Busy.close(&taken.swap_remove(longest).connection, reason);
        }
        taken.push(place.clone());
        Ok(AdminPlace { place, of: self.clone() })
    }
}

impl AdminPlace {
    /// What a stream of this connection holds while it is open.
    pub(super) fn stream(&self) -> TokenInner {
        let ends = Ends(self.place.clone());
        TokenInner { _keep: Some(Arc::new(ends)), _in_use: self.place.in_use.clone(), _permit: None }
    }
}

impl Drop for AdminPlace {
    fn drop(&mut self) {
        self.of.taken.lock().retain(|place| !Arc::ptr_eq(place, &self.place));
    }
}

/// Notes the end of a stream.
struct Ends(Arc<Place>);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
    }
}
