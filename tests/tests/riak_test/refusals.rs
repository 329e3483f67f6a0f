//! What must be refused, as an operator sees it: exit code, message, and nothing changed.
