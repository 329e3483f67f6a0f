//! Random numbers: the system's, or a scope's.

use std::convert::Infallible;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::distr::{Distribution, StandardUniform};
use rand::rand_core::TryRng;
use rand::{Rng, RngExt};

use crate::Scope;

/// A value of any of the types that `rand::random` makes.
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    Source.random()
}

/// A value within a range.
///
/// # Panics
/// If the range is empty.
pub fn random_range<T, R>(range: R) -> T
where
    T: SampleUniform,
    R: SampleRange<T>,
{
    Source.random_range(range)
}

/// Where the present scope's random numbers come from; the thread's generator outside of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source;

impl TryRng for Source {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.next_u64_here() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next_u64_here())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        if Scope::current().is_none() {
            rand::rng().fill_bytes(bytes);
            return Ok(());
        }
        for chunk in bytes.chunks_mut(size_of::<u64>()) {
            chunk.copy_from_slice(&self.next_u64_here().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl Source {
    /// Fills a buffer.
    pub fn fill(mut self, bytes: &mut [u8]) {
        self.fill_bytes(bytes);
    }

    fn next_u64_here(self) -> u64 {
        match Scope::current() {
            None => rand::rng().next_u64(),
            Some(scope) => scope.world().random(scope.id()),
        }
    }
}
