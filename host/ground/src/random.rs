//! Random numbers of the system, or of the current scope.

use std::convert::Infallible;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::distr::{Distribution, StandardUniform};
use rand::rand_core::TryRng;
use rand::{Rng, RngExt};

use crate::Scope;

/// Return a random value of any type that `rand::random` supports.
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    Source.random()
}

/// Return a random value within a range.
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

/// The random number generator of the current scope, or the thread's generator outside a scope.
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
    /// Fill a buffer with random bytes.
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
