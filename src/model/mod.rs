//! Hyper-parameters, bound weights and the forward pass.

mod experts;
mod forward;
mod hyper;
mod member;
mod rope;
mod weights;

pub use forward::{Outputs, Workspace, forward};
pub use hyper::{Architecture, Hyper};
pub use member::Shape;
pub use rope::{Regime, Rope};
pub use weights::{EXPERTS_USED, Experts, FeedForward, Layer, Linear, Model, Norm, Qkv, Survey};

/// Architectures that [`Model::load`] accepts, as `general.architecture` names them.
pub const SUPPORTED: &[&str] = &[
    Architecture::Phi2.name(),
    Architecture::Phi3.name(),
    Architecture::Phi3Small.name(),
    Architecture::PhiMoe.name(),
];
