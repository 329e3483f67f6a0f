//! A whole cluster of the core's pure machines in one thread, driven by a seed.
