//! Page tables: one walker over small formats.
//!
//! [`format`] says what a format is, [`second_stage`] and [`first_stage`] are two, [`walk`] has the cursor and everything
//! done with it: look-up, map, unmap.

pub mod first_stage;
pub mod format;
pub mod second_stage;
pub mod walk;
