//! Hyper-parameters, bound weights and the forward pass.

mod forward;
mod hyper;
mod rope;
mod weights;

pub use forward::{Outputs, Workspace, forward};
pub use hyper::Hyper;
pub use rope::{Regime, Rope};
pub use weights::{Layer, Model, Survey};

/// Architectures that [`Model::load`] accepts, as `general.architecture` names them.
pub const SUPPORTED: &[&str] = &["phi3"];
