//! Guests that follow a script.
