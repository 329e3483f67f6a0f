//! The binary carries the guest SDK, the bundled guests and the contract, for `annulus new` and
//! the demo: it is built anew when they change.

fn main() {
    for path in ["build.rs", "../guest-sdk", "../guests", "../wit", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
}
