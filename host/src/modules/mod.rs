//! Deployed modules: registry, distribution, swap.
