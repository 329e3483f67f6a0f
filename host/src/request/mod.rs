//! Coordinating requests.
