//! What the command line and other operators may ask of a node.
