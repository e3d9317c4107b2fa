//! Runs the kernels' story on the built-in machine, in this process.

use crate::record::Record;
use crate::settings::Settings;

/// Runs the update.
///
/// # Errors
/// When the machine cannot be made as asked for.
pub fn run(_settings: &Settings) -> anyhow::Result<Record> {
    anyhow::bail!("the built-in machine is not part of this build")
}
