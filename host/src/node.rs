//! Puts one node together; start and stop order in one place.
