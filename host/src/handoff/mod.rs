//! Moving items between nodes.
