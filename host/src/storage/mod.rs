//! Host storage of vnodes.
