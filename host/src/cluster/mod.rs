//! The control plane: Raft over the transport, the committed state, joining.
