//! QUIC, TLS identities, request lanes and bulk streams.
