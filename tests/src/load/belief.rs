//! The model of one key, kept by the key's only writer.

/// The value of a key, or `None` if the key is absent.
pub type Held = Option<u64>;

/// The values that one key may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belief {
    /// Value after the last acknowledged write, or the value that a later read returned.
    certain: Held,
    /// Writes with an unknown outcome: each may have been applied, or may still be.
    maybe: Vec<Held>,
    /// Set when the memory that held the key was lost: the key may be absent.
    gone: bool,
}

/// The way in which a read contradicts the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// An acknowledged write is missing.
    Lost,
    /// A value is back after an acknowledged delete.
    Resurrected,
}

/// The presence of a key, as far as the model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The key is absent.
    Absent,
    /// The key is present.
    Present,
    /// A write with an unknown outcome, or a possible loss, leaves it open.
    Uncertain,
}

impl Belief {
    /// Record an acknowledged write.
    pub fn acknowledge(&mut self, held: Held) {
        self.certain = held;
        self.gone = false;
    }

    /// Record a write with an unknown outcome.
    pub fn suspect(&mut self, held: Held) {
        self.maybe.push(held);
    }

    /// Record that the memory of this key may be lost.
    pub fn doubt(&mut self) {
        self.gone = true;
    }

    /// Check the value that a read returned, and adopt it as certain, even if it contradicts the model.
    ///
    /// # Errors
    /// The contradiction with the previous model.
    pub fn see(&mut self, held: Held) -> Result<(), Wrong> {
        let gone = std::mem::take(&mut self.gone);
        let before = std::mem::replace(&mut self.certain, held);
        if held == before || (gone && held.is_none()) {
            return Ok(());
        }
        if let Some(late) = self.maybe.iter().position(|maybe| *maybe == held) {
            // Each value is written once, so this unknown write is settled.
            self.maybe.swap_remove(late);
            return Ok(());
        }
        Err(if before.is_none() { Wrong::Resurrected } else { Wrong::Lost })
    }

    /// Return the certain value, without regard to writes with an unknown outcome.
    pub fn held(&self) -> Held {
        self.certain
    }

    /// Return the presence of the key.
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
    fn a_missing_or_resurrected_acknowledged_write_is_reported() {
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
    fn an_unknown_write_may_appear_late_but_only_once() {
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
    fn a_doubted_key_may_be_absent_until_the_next_read() {
        let mut key = Belief::default();
        key.acknowledge(Some(1));
        key.doubt();
        assert_eq!(key.clone().see(None), Ok(()));
        assert_eq!(key.see(Some(1)), Ok(()));
        assert_eq!(key.see(None), Err(Wrong::Lost), "the read showed that the key survived");
        key.acknowledge(None);
        key.doubt();
        assert_eq!(key.see(Some(1)), Err(Wrong::Resurrected));
    }
}
