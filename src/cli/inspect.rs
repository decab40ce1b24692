//! `phi inspect`: what is in a model file.

/// Show what is in a GGUF file, a checkpoint folder or a safetensors file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file (any part of a split one), checkpoint folder or .safetensors file
    model: std::path::PathBuf,
}

/// Runs the command.
pub fn run(_args: Args) -> anyhow::Result<()> {
    Ok(())
}
