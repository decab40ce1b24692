//! The operations a forward pass needs, as one trait.
