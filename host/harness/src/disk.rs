//! Disks of simulated nodes.
