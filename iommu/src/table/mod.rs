//! Page tables: one walker over small formats.
//!
//! [`format`] says what a format is, [`second_stage`] is the first of them, [`walk`] has the cursor and everything done
//! with it: look-up, map, unmap.

pub mod format;
pub mod second_stage;
pub mod walk;
