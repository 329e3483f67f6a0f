//! What the model knows of one key, whose only writer keeps it.

/// A value, or `None` where there is none.
pub type Held = Option<u64>;

/// What one key may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belief {
    /// What the last acknowledged write left, or a read since saw.
    certain: Held,
    /// Writes with an unknown outcome: each may have happened, or happen yet.
    maybe: Vec<Held>,
    /// The memory that held it has died; nothing may be left.
    gone: bool,
}

/// How a read contradicts the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// An acknowledged write is not there.
    Lost,
    /// Something is there that an acknowledged delete had taken away.
    Resurrected,
}

/// Is a key there, as far as is certain?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is not.
    Absent,
    /// It is.
    Present,
    /// Nobody can say.
    Uncertain,
}

impl Belief {
    /// A write was acknowledged.
    pub fn acknowledge(&mut self, held: Held) {
        self.certain = held;
        self.gone = false;
    }

    /// A write was sent, and nobody knows what became of it.
    pub fn suspect(&mut self, held: Held) {
        self.maybe.push(held);
    }

    /// Whatever is held may be gone.
    pub fn doubt(&mut self) {
        self.gone = true;
    }

    /// A read saw this. It is believed from now on, right or wrong.
    ///
    /// # Errors
    /// How it contradicts what was believed.
    pub fn see(&mut self, held: Held) -> Result<(), Wrong> {
        let gone = std::mem::take(&mut self.gone);
        let before = std::mem::replace(&mut self.certain, held);
        if held == before || (gone && held.is_none()) {
            return Ok(());
        }
        if let Some(late) = self.maybe.iter().position(|maybe| *maybe == held) {
            // A value is written once; that was it.
            self.maybe.swap_remove(late);
            return Ok(());
        }
        Err(if before.is_none() { Wrong::Resurrected } else { Wrong::Lost })
    }

    /// What it holds, if nothing unknown is under way.
    pub fn held(&self) -> Held {
        self.certain
    }

    /// Is it there?
    pub fn presence(&self) -> Presence {
        let here = self.certain.is_some();
        let sure = !self.gone && self.maybe.iter().all(|maybe| maybe.is_some() == here);
        match (sure, here) {
            (false, _) => Presence::Uncertain,
            (true, true) => Presence::Present,
            (true, false) => Presence::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_writes_are_held_to_account() {
        let mut key = Belief::default();
        assert_eq!(key.see(Some(9)), Err(Wrong::Resurrected));
        key.acknowledge(Some(1));
        key.acknowledge(Some(2));
        assert_eq!(key.clone().see(None), Err(Wrong::Lost));
        assert_eq!(key.clone().see(Some(1)), Err(Wrong::Lost), "an older value is a lost write");
        assert_eq!(key.see(Some(2)), Ok(()));
        key.acknowledge(None);
        assert_eq!(key.clone().see(Some(2)), Err(Wrong::Resurrected));
        assert_eq!((key.presence(), key.see(None)), (Presence::Absent, Ok(())));
    }

    #[test]
    fn an_unknown_write_may_come_late_but_only_once() {
        let mut key = Belief::default();
        key.suspect(Some(1));
        key.acknowledge(Some(2));
        assert_eq!((key.presence(), key.see(Some(2))), (Presence::Present, Ok(())));
        assert_eq!(key.see(Some(1)), Ok(()), "late");
        key.acknowledge(Some(3));
        assert_eq!(key.see(Some(1)), Err(Wrong::Lost));
        key.suspect(None);
        assert_eq!(key.presence(), Presence::Uncertain);
    }

    #[test]
    fn what_died_may_be_gone_until_it_is_looked_at() {
        let mut key = Belief::default();
        key.acknowledge(Some(1));
        key.doubt();
        assert_eq!(key.clone().see(None), Ok(()));
        assert_eq!(key.see(Some(1)), Ok(()));
        assert_eq!(key.see(None), Err(Wrong::Lost), "it had survived");
        key.acknowledge(None);
        key.doubt();
        assert_eq!(key.see(Some(1)), Err(Wrong::Resurrected));
    }
}
