//! annulus
fn main() {}
